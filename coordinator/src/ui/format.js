// Numbers and times as people read them.

export function bytes(count) {
  const units = [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]];
  const unit = units.find(([size]) => count >= size);
  return unit ? `${(count / unit[0]).toFixed(1)} ${unit[1]}` : `${count} B`;
}

export function rate(bytesPerSecond) {
  const units = [[1e9, "GB/s"], [1e6, "MB/s"], [1e3, "kB/s"]];
  const [size, name] = units.find(([size]) => bytesPerSecond >= size) ?? [1, "B/s"];
  return `${(bytesPerSecond / size).toFixed(1)} ${name}`;
}

export function seconds(value) {
  if (value < 0.001) return `${Math.round(value * 1e6)} µs`;
  if (value < 1) return `${(value * 1e3).toFixed(value < 0.01 ? 1 : 0)} ms`;
  if (value < 60) return `${value.toFixed(value < 10 ? 2 : 1)} s`;
  return duration(value);
}

// Whole units, for what nobody needs to know to the second.
export function duration(value) {
  const whole = Math.round(value);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

export function ago(unix) {
  const passed = Date.now() / 1e3 - unix;
  if (passed < 45) return "just now";
  if (passed < 3600) return `${Math.max(1, Math.round(passed / 60))} min ago`;
  if (passed < 86400) return `${Math.round(passed / 3600)} h ago`;
  return new Date(unix * 1e3).toLocaleDateString(undefined, { day: "numeric", month: "short", year: "numeric" });
}

export function moment(unix) {
  return new Date(unix * 1e3).toLocaleString();
}

export function percent(share) {
  const value = share * 100;
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} %`;
}

export function count(number, one, many = `${one}s`) {
  return `${number} ${number === 1 ? one : many}`;
}

// Large numbers with a prefix: 12400 -> 12.4 k.
export function short(number) {
  const units = [[1e9, "G"], [1e6, "M"], [1e3, "k"]];
  const unit = units.find(([size]) => number >= size);
  return unit ? `${(number / unit[0]).toFixed(1)} ${unit[1]}` : String(Math.round(number));
}

// What a program says, as people write it.
export function sentence(text) {
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}
