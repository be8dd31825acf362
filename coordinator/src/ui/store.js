// What the browser remembers for this page. A browser that stores nothing forgets it with the page.

const forgotten = new Map();

export function load(name) {
  try {
    const text = localStorage.getItem(`tessera.${name}`);
    return text === null ? forgotten.get(name) : JSON.parse(text);
  } catch {
    return forgotten.get(name);
  }
}

export function save(name, value) {
  forgotten.set(name, value);
  try {
    if (value === undefined) localStorage.removeItem(`tessera.${name}`);
    else localStorage.setItem(`tessera.${name}`, JSON.stringify(value));
  } catch {
    // Kept until the page goes.
  }
}
