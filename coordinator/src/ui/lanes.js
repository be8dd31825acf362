// Draws where time went. All lengths are true: a stretch thinner than a pixel is drawn as faint as it is thin.

import { seconds } from "./format.js";
import { hue } from "./hues.js";
import { KINDS, WAIT } from "./record.js";

export const LANE = 34;
const WORK_HEIGHT = 18;
const LINK_TOP = 21;
const LINK_HEIGHT = 5;
// A call that is as narrow as that shows its waits as one.
const FEW = 6;
const AXIS = 24;
const BARS = 132;
// The colours of the kinds of work, by the names that style.css gives them.
export const KIND_INKS = ["convolution", "linear", "attention", "norm", "pointwise", "copy", "wait"];

let probe;

// A colour of the style sheet as it is in the present theme.
function ink(name) {
  probe ??= document.body.appendChild(Object.assign(document.createElement("i"), { className: "probe" }));
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

export class Plot {
  constructor(canvas) {
    this.canvas = canvas;
    this.pen = canvas.getContext("2d");
    this.places = [];
  }

  // The height that `lanes` lanes take, so that it is there before they are.
  static height(lanes) {
    return lanes * LANE + AXIS;
  }

  begin(height) {
    const { canvas, pen } = this;
    const width = canvas.parentElement.clientWidth;
    const scale = devicePixelRatio || 1;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.font = `12px ${getComputedStyle(canvas).fontFamily}`;
    pen.textBaseline = "middle";
    const left = width < 480 ? 72 : 128;
    Object.assign(this, { width, height, left, right: width - 8, places: [] });
  }

  label(worker, top) {
    const { pen, left } = this;
    pen.fillStyle = ink(`w${hue(worker)}`);
    pen.fillRect(0, top + 4, 4, WORK_HEIGHT - 8);
    pen.fillStyle = ink("text");
    pen.textAlign = "left";
    pen.fillText(this.fit(worker, left - 20), 10, top + WORK_HEIGHT / 2);
  }

  fit(text, width) {
    if (this.pen.measureText(text).width <= width) return text;
    let short = text;
    // Names of machines differ at their ends.
    while (short.length > 1 && this.pen.measureText(`…${short}`).width > width) short = short.slice(1);
    return `…${short}`;
  }

  axis(from, span, top) {
    const { pen, left, right } = this;
    const step = tick(span / 1e6, (right - left) / 90);
    pen.strokeStyle = ink("line");
    pen.fillStyle = ink("quiet");
    pen.textAlign = "center";
    pen.lineWidth = 1;
    for (let at = 0; at <= span / 1e6 + step / 1e6; at += step) {
      const x = Math.round(left + ((right - left) * at * 1e6) / span) + 0.5;
      if (x > right + 1) break;
      pen.beginPath();
      pen.moveTo(x, 0);
      pen.lineTo(x, top);
      pen.stroke();
      pen.fillText(at === 0 ? "0" : seconds(at), Math.min(x, right - 16), top + AXIS / 2 + 2);
    }
  }

  // Every call of every worker: what it computed in the worker's colour, what it waited over it.
  run(record) {
    const lanes = record.order();
    this.begin(Plot.height(lanes.length));
    const [from, to] = record.extent();
    const span = Math.max(1, to - from);
    const scale = (this.right - this.left) / span;
    const alone = lanes.length < 2;
    const last = record.calls().at(-1);
    this.axis(from, span, lanes.length * LANE);
    const inks = { wait: ink("wait"), link: ink("link"), line: ink("card") };
    lanes.forEach(([worker, profiles], lane) => {
      const top = lane * LANE + 4;
      const colour = ink(`w${hue(worker)}`);
      this.label(worker, top);
      for (const profile of profiles) {
        const x = this.left + (profile.start - from) * scale;
        const width = Math.max(profile.took * scale, 0.5);
        this.pen.globalAlpha = profile.phase === "denoising" ? 1 : 0.55;
        this.pen.fillStyle = colour;
        this.pen.fillRect(x, top, width, WORK_HEIGHT);
        this.pen.globalAlpha = 1;
        this.waits(profile, x, scale, top, inks);
        // What a displaced call posts is read in the next: it is on its way beside all of this one.
        if (profile.displaced && !alone && profile.call !== last) {
          this.pen.fillStyle = inks.link;
          this.pen.fillRect(x, top + LINK_TOP, width, LINK_HEIGHT);
        }
        if (width > 3) {
          this.pen.fillStyle = inks.line;
          this.pen.fillRect(x + width - 1, top, 1, LINK_TOP + LINK_HEIGHT);
        }
        this.places.push({ lane, worker, profile, x, width });
      }
    });
    this.from = from;
    this.scale = scale;
  }

  waits(profile, x, scale, top, inks) {
    const { pen } = this;
    if (profile.took * scale < FEW) {
      pen.fillStyle = inks.wait;
      pen.fillRect(x, top, profile.waited * scale, WORK_HEIGHT);
      return;
    }
    for (const at of profile.waits) {
      const start = x + profile.starts[at] * scale;
      const width = profile.tooks[at] * scale;
      pen.fillStyle = inks.wait;
      pen.fillRect(start, top, width, WORK_HEIGHT);
      // What is waited for is on its way while it is waited for.
      pen.fillStyle = inks.link;
      if (!profile.displaced) pen.fillRect(start, top + LINK_TOP, width, LINK_HEIGHT);
    }
  }

  // One call of every worker, by kind of work.
  call(record, number) {
    const lanes = record.order();
    this.begin(Plot.height(lanes.length));
    const isIt = (profile) => profile.phase === "denoising" && profile.call === number;
    const [from, to] = record.extent(isIt);
    const span = Math.max(1, to - from);
    const scale = (this.right - this.left) / span;
    this.axis(from, span, lanes.length * LANE);
    const inks = KIND_INKS.map(ink);
    const link = ink("link");
    const rest = ink("rest");
    const last = record.calls().at(-1);
    lanes.forEach(([worker, profiles], lane) => {
      const top = lane * LANE + 4;
      this.label(worker, top);
      for (const profile of profiles.filter(isIt)) {
        const x = this.left + (profile.start - from) * scale;
        const width = profile.took * scale;
        this.pen.fillStyle = rest;
        this.pen.fillRect(x, top, width, WORK_HEIGHT);
        for (let at = 0; at < profile.kinds.length; at += 1) {
          const start = x + profile.starts[at] * scale;
          this.pen.fillStyle = inks[profile.kinds[at]];
          this.pen.fillRect(start, top, profile.tooks[at] * scale, WORK_HEIGHT);
          if (profile.kinds[at] !== WAIT || profile.displaced) continue;
          this.pen.fillStyle = link;
          this.pen.fillRect(start, top + LINK_TOP, profile.tooks[at] * scale, LINK_HEIGHT);
        }
        if (profile.displaced && lanes.length > 1 && number !== last) {
          this.pen.fillStyle = link;
          this.pen.fillRect(x, top + LINK_TOP, width, LINK_HEIGHT);
        }
        this.places.push({ lane, worker, profile, x, width, within: true });
      }
    });
    this.from = from;
    this.scale = scale;
  }

  // A bar for each call, of a job whose workers were not asked for more.
  steps(record, calls) {
    this.begin(BARS + AXIS);
    const { pen } = this;
    const steps = [...record.steps.values()];
    const slowest = Math.max(...steps.map((step) => step.seconds));
    const pitch = (this.right - this.left) / Math.max(calls, 1);
    const inks = { work: ink("accent"), wait: ink("wait"), text: ink("quiet"), line: ink("line") };
    pen.fillStyle = inks.text;
    pen.textAlign = "left";
    pen.fillText(seconds(slowest), 0, 8);
    pen.fillText("0", 0, BARS - 6);
    pen.fillStyle = inks.line;
    pen.fillRect(this.left, BARS, this.right - this.left, 1);
    for (const step of steps) {
      const x = this.left + (step.call - 1) * pitch;
      const width = Math.max(pitch - Math.min(2, pitch / 4), 0.5);
      const height = (BARS * step.seconds) / slowest;
      const waited = (BARS * step.waited) / slowest;
      pen.globalAlpha = step.displaced ? 1 : 0.55;
      pen.fillStyle = inks.work;
      pen.fillRect(x, BARS - height, width, height - waited);
      pen.fillStyle = inks.wait;
      pen.fillRect(x, BARS - waited, width, waited);
      pen.globalAlpha = 1;
      this.places.push({ step, x, width: pitch });
    }
    pen.fillStyle = inks.text;
    pen.textAlign = "center";
    const every = Math.ceil(calls / ((this.right - this.left) / 40));
    for (let call = 1; call <= calls; call += every) {
      pen.fillText(String(call), this.left + (call - 0.5) * pitch, BARS + AXIS / 2 + 2);
    }
  }

  // How each worker spent a job of which nothing more is known than sums.
  totals(rows, took) {
    this.begin(Plot.height(rows.length));
    this.axis(0, Math.max(1, took * 1e6), rows.length * LANE);
    const length = this.right - this.left;
    rows.forEach((row, lane) => {
      const top = lane * LANE + 4;
      this.label(row.worker, top);
      const waited = length * Math.min(1, row.share);
      this.pen.fillStyle = ink(`w${hue(row.worker)}`);
      this.pen.fillRect(this.left, top, length - waited, WORK_HEIGHT);
      this.pen.fillStyle = ink("wait");
      this.pen.fillRect(this.left + length - waited, top, waited, WORK_HEIGHT);
    });
  }

  // What is drawn at a place, in words.
  at(x, y, names) {
    const lane = Math.floor(y / LANE);
    const place = this.places.find((one) => x >= one.x && x < one.x + one.width && (one.step || one.lane === lane));
    if (!place) return null;
    if (place.step) return { call: place.step.call - 1, text: barWords(place.step) };
    const { profile, worker } = place;
    const title = profile.phase === "denoising" ? `call ${profile.call + 1}` : names[profile.phase];
    const words = [worker, title, profile.phase === "denoising" ? (profile.displaced ? "displaced" : "synchronous") : null];
    words.push(place.within ? this.within(profile, (x - place.x) / this.scale) : `${seconds(profile.took / 1e6)}, ${seconds(profile.waited / 1e6)} of it waiting`);
    return { call: profile.call, text: words.filter(Boolean).join(" · ") };
  }

  within(profile, at) {
    for (let span = 0; span < profile.kinds.length; span += 1) {
      if (at < profile.starts[span] || at >= profile.starts[span] + profile.tooks[span]) continue;
      const took = seconds(profile.tooks[span] / 1e6);
      if (profile.kinds[span] !== WAIT) return `${KINDS[profile.kinds[span]].toLowerCase()}, ${took}`;
      const peer = profile.peers[span];
      return `waits for ${profile.names.get(peer) ?? `rank ${peer}`}, ${took}`;
    }
    return "between layers";
  }
}

function barWords(step) {
  const how = step.displaced ? "displaced" : "synchronous";
  return `call ${step.call} · ${how} · ${seconds(step.seconds)}, the longest wait in it ${seconds(step.waited)}`;
}

// A round distance between ticks, of which `many` fit into `span` seconds.
function tick(span, many) {
  const rough = span / Math.max(many, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= rough);
}
