// What was heard of where a job's time went, in arrays: a job of many workers tells of a million stretches.

import { hue } from "./hues.js";

// The order of `Work` in the protocol; waiting is last.
export const KINDS = ["Convolution", "Linear", "Attention", "Norm", "Pointwise", "Copy", "Wait"];
export const WAIT = KINDS.length - 1;

const kindOf = (work) => (typeof work === "string" ? KINDS.indexOf(work) : WAIT);

function pack({ phase, call, displaced, start_us, took_us, spans }) {
  const packed = {
    phase, call, displaced, start: start_us, took: took_us, waited: 0,
    kinds: Uint8Array.from(spans, (span) => kindOf(span.work)),
    peers: Int16Array.from(spans, (span) => span.work.Wait ?? -1),
    starts: Uint32Array.from(spans, (span) => span.start_us),
    tooks: Uint32Array.from(spans, (span) => span.took_us),
  };
  packed.waits = [...packed.kinds.keys()].filter((at) => packed.kinds[at] === WAIT);
  packed.waited = packed.waits.reduce((sum, at) => sum + packed.tooks[at], 0);
  return packed;
}

export class Record {
  constructor(job) {
    Object.assign(this, { id: job.id, lanes: new Map(), steps: new Map(), result: job.result ?? null });
    this.names = new Map();
    this.bands(job.bands ?? []);
  }

  // Ranks are others' after a job broke off: lanes are of workers.
  bands(bands) {
    for (const band of bands) {
      this.names.set(band.rank, band.worker);
      hue(band.worker);
    }
  }

  name(rank) {
    return this.names.get(rank) ?? `rank ${rank}`;
  }

  hear(name, event) {
    if (event.bands) this.bands(event.bands);
    if (name === "step") this.steps.set(event.call, event);
    if (name !== "profiled") return;
    const worker = this.name(event.rank);
    if (!this.lanes.has(worker)) this.lanes.set(worker, []);
    const lane = this.lanes.get(worker);
    const packed = pack(event.profile);
    packed.names = new Map(this.names);
    // Where events were heard twice, after a reconnect, the later ones count.
    const same = lane.findIndex((other) => other.start === packed.start);
    if (same >= 0) lane[same] = packed;
    else lane.push(packed);
  }

  // Lanes in the order of ranks.
  order() {
    const ranks = [...this.names.values()];
    const place = (worker) => (ranks.includes(worker) ? ranks.indexOf(worker) : ranks.length);
    return [...this.lanes.entries()].sort(([one], [other]) => place(one) - place(other));
  }

  // Numbers of the calls that are known, in order.
  calls() {
    const all = [...this.lanes.values()].flat().filter((profile) => profile.phase === "denoising").map((profile) => profile.call);
    return [...new Set(all)].sort((one, other) => one - other);
  }

  // From the first beginning to the last end of the profiles that `of` takes, in microseconds.
  extent(of = () => true) {
    const profiles = [...this.lanes.values()].flat().filter(of);
    if (!profiles.length) return null;
    const first = (start, profile) => Math.min(start, profile.start);
    const last = (end, profile) => Math.max(end, profile.start + profile.took);
    return [profiles.reduce(first, Infinity), profiles.reduce(last, 0)];
  }

  // What part of the time workers waited in displaced calls, and in others.
  shares() {
    const share = (displaced) => {
      let [waited, took] = [0, 0];
      if (this.lanes.size) {
        for (const profile of [...this.lanes.values()].flat()) {
          // The first call touches its memory for the first time, and everyone waits for the slowest at that.
          if (profile.phase !== "denoising" || profile.displaced !== displaced || profile.call === 0) continue;
          [waited, took] = [waited + profile.waited, took + profile.took];
        }
      } else {
        for (const step of this.steps.values()) {
          if (step.displaced !== displaced || step.call === 1) continue;
          [waited, took] = [waited + step.waited, took + step.seconds];
        }
      }
      return took ? waited / took : null;
    };
    return { displaced: share(true), synchronous: share(false) };
  }
}
