// The timeline of the job that is looked at: whether communication hides behind computation.

import { $, el, say } from "./dom.js";
import { hasEnded, keyOf, progressOf, swatch, waitRows } from "./facts.js";
import { bytes, percent, seconds } from "./format.js";
import { KIND_INKS, Plot } from "./lanes.js";
import { Record } from "./record.js";

// So many jobs' timelines are kept, to be looked at again.
const KEPT = 8;
const REDRAW_MS = 120;
// Communication is called hidden if no more than this part of the time is waited.
const HIDDEN = 0.1;
const PHASES = { text_encoding: "prompt", decoding: "decode" };

export class Timeline {
  constructor() {
    Object.assign(this, { records: new Map(), record: null, job: null, zoomed: false, picked: null, drawn: null });
    this.canvas = $("#lanes");
    this.plot = new Plot(this.canvas);
    $("#zoom-run").addEventListener("click", () => this.zoom(false));
    $("#zoom-call").addEventListener("click", () => this.zoom(true));
    $("#call-before").addEventListener("click", () => this.step(-1));
    $("#call-after").addEventListener("click", () => this.step(1));
    this.canvas.addEventListener("pointermove", (event) => this.read(event));
    this.canvas.addEventListener("pointerleave", () => this.hint());
    this.canvas.addEventListener("click", (event) => this.pick(event));
    this.canvas.addEventListener("keydown", (event) => this.press(event));
    new ResizeObserver(() => this.later()).observe($("#plot"));
    for (const query of ["(prefers-color-scheme: dark)", "(resolution: 1dppx)"]) {
      matchMedia(query).addEventListener("change", () => this.later());
    }
    new MutationObserver(() => this.later()).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
    this.draw();
  }

  begin(job) {
    this.job = job;
    this.record = this.records.get(keyOf(job)) ?? new Record(job);
    this.record.result = job.result ?? this.record.result;
    this.records.delete(keyOf(job));
    this.records.set(keyOf(job), this.record);
    if (this.records.size > KEPT) this.records.delete(this.records.keys().next().value);
    this.picked = null;
    this.zoomed = false;
    this.later();
  }

  hear(name, event, job) {
    this.job = job;
    this.record?.hear(name, event);
    if (["started", "resumed", "step", "profiled"].includes(name)) this.later();
  }

  end(job) {
    this.job = job;
    this.record.result = job.result ?? null;
    this.later();
  }

  zoom(zoomed) {
    this.zoomed = zoomed;
    this.draw();
  }

  // The call that is looked at: the one that was picked, or else the last but one. Not all may have told of the last, in
  // which nothing is sent.
  current() {
    const calls = this.record.calls();
    if (calls.includes(this.picked)) return this.picked;
    return calls.at(-2) ?? calls.at(-1);
  }

  step(by) {
    const calls = this.record?.calls() ?? [];
    if (!calls.length) return;
    const at = calls.indexOf(this.current()) + by;
    this.picked = calls[Math.max(0, Math.min(calls.length - 1, at))];
    this.zoom(true);
  }

  press(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) this.step(by);
    else if (event.key === "Enter") this.zoom(!this.zoomed);
    else return;
    event.preventDefault();
  }

  pick(event) {
    const found = this.plot.at(event.offsetX, event.offsetY, PHASES);
    if (!found || !this.record?.lanes.size) return;
    if (this.zoomed) return this.zoom(false);
    this.picked = found.call;
    this.zoom(true);
  }

  read(event) {
    const found = this.plot.at(event.offsetX, event.offsetY, PHASES);
    if (found) say($("#readout"), found.text);
    else this.hint();
  }

  hint() {
    const text = { run: "Point at a call to read it, click to look into it.", call: "Arrow keys step from call to call." };
    say($("#readout"), text[this.drawn] ?? "");
  }

  // Soon, but not for each of the many things that workers tell.
  later() {
    this.due ??= setTimeout(() => {
      this.due = null;
      this.draw();
    }, REDRAW_MS);
  }

  draw() {
    const { record, job } = this;
    const kind = !record ? "none" : record.lanes.size ? (this.zoomed && record.calls().length ? "call" : "run") : record.steps.size ? "steps" : record.result?.waits.length ? "totals" : "none";
    const isChanged = kind !== this.drawn;
    this.drawn = kind;
    const isProfile = kind === "run" || kind === "call";
    $("#zoom-run").setAttribute("aria-pressed", String(kind !== "call"));
    $("#zoom-call").setAttribute("aria-pressed", String(kind === "call"));
    for (const button of [$("#zoom-run"), $("#zoom-call")]) button.disabled = !isProfile;
    $("#call-stepper").hidden = kind !== "call";
    this.canvas.hidden = kind === "none";
    this.canvas.tabIndex = isProfile ? 0 : -1;
    // What is to come has its place before it comes.
    $("#plot").style.minHeight = `${Plot.height(Math.max(3, job?.bands?.length ?? 0))}px`;
    if (kind === "run") this.plot.run(record);
    if (kind === "call") this.drawCall();
    if (kind === "steps") this.plot.steps(record, progressOf(job)?.calls ?? record.steps.size);
    if (kind === "totals") this.plot.totals(waitRows(record.result), record.result.seconds);
    if (isChanged) {
      this.legend(kind);
      this.hint();
    }
    const words = this.words(kind);
    say($("#timeline-summary"), words);
    this.canvas.setAttribute("aria-label", `Timeline of the workers. ${words}`);
    this.table(kind);
  }

  drawCall() {
    const call = this.current();
    this.plot.call(this.record, call);
    const displaced = [...this.record.lanes.values()].flat().some((profile) => profile.call === call && profile.displaced);
    say($("#call-name"), `Call ${call + 1}, ${displaced ? "displaced" : "synchronous"}`);
  }

  words(kind) {
    if (kind === "none") {
      if (!this.job || this.job.state === "queued") return "While an image is rendered, this shows what each worker computes, waits for and sends.";
      if (hasEnded(this.job)) return "No call of this job was seen from here.";
      return this.job.spec?.profile ? "The first call is under way." : "No timeline was asked for with this job; its calls appear here.";
    }
    if (kind === "totals") return "What each worker computed, and waited for others. Only sums are known of a job that was not looked at while it was rendered.";
    const { displaced, synchronous } = this.record.shares();
    const alone = kind !== "steps" && this.record.lanes.size < 2;
    if (alone) return "One worker, which waits for nobody.";
    const who = kind === "steps" ? "The worker that waited longest did so" : "Workers waited for each other";
    if (displaced !== null) {
      const other = synchronous === null ? "" : `, and ${percent(synchronous)} of it in synchronous ones`;
      const why = displaced <= HIDDEN ? "what is sent hides behind what is computed" : "for values on their way, or for slower workers";
      return `${who} ${percent(displaced)} of the time in displaced calls${other}: ${why}.`;
    }
    if (synchronous !== null) return `${who} ${percent(synchronous)} of the time. No call was displaced yet: what is sent is waited for.`;
    return "The first call touches all memory for the first time: later ones tell more.";
  }

  legend(kind) {
    const item = (ink, text) => el("li", {}, el("i", { class: `swatch ink-${ink}`, "aria-hidden": "true" }), text);
    const items = {
      none: [],
      run: [item("worker", "computing, in the worker's colour"), item("wait", "waiting for a peer"), item("link", "sending: on its way until the next call reads it")],
      call: [...KIND_INKS.map((name) => item(name, name === "wait" ? "waiting" : name)), item("link", "sending"), item("rest", "between layers")],
      steps: [item("accent", "computing, faint where synchronous"), item("wait", "the longest wait")],
      totals: [item("worker", "computing, in the worker's colour"), item("wait", "waiting for peers")],
    };
    $("#legend").replaceChildren(...items[kind]);
  }

  table(kind) {
    const rows = this.rows(kind);
    $("#timeline-table").hidden = rows.length === 0;
    const wanted = JSON.stringify(rows);
    if (!rows.length || this.tabled === wanted) return;
    this.tabled = wanted;
    const heads = ["Worker", "Computed", "Waited", "Sent", "Peak memory"];
    $("#timeline-table thead").replaceChildren(el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head))));
    $("#timeline-table tbody").replaceChildren(...rows.map(([worker, ...cells]) =>
      el("tr", {}, el("th", { scope: "row" }, swatch(worker), worker), ...cells.map((cell) => el("td", {}, cell)))));
  }

  rows(kind) {
    const result = this.record?.result;
    if (result?.waits.length) {
      return waitRows(result).map((row) => [
        row.worker, seconds(Math.max(0, result.seconds - row.waited)), `${seconds(row.waited)} (${percent(row.share)})`, bytes(row.sent),
        row.peak ? bytes(row.peak) : "not told",
      ]);
    }
    if (kind !== "run" && kind !== "call") return [];
    return this.record.order().map(([worker, profiles]) => {
      const took = profiles.reduce((sum, profile) => sum + profile.took, 0) / 1e6;
      const waited = profiles.reduce((sum, profile) => sum + profile.waited, 0) / 1e6;
      return [worker, seconds(took - waited), `${seconds(waited)} (${percent(took ? waited / took : 0)})`, "once finished", "once finished"];
    });
  }
}
