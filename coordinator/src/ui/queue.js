// Jobs that wait or are rendered, and those that ended without an image.

import { $, el, reconcile, say } from "./dom.js";
import { chip, faultOf, hasEnded, keyOf, progressOf, titleOf } from "./facts.js";
import { ago, count } from "./format.js";

export class Queue {
  constructor(hooks) {
    this.hooks = hooks;
    this.cancelling = new Set();
    this.watched = null;
    this.active = [];
  }

  show(active, ended) {
    this.active = active;
    // What is rendered first, then in turn.
    const place = (job) => (job.state === "queued" ? 1 + (job.ahead ?? 0) : 0);
    const inTurn = [...active].sort((one, other) => place(one) - place(other) || one.id - other.id);
    reconcile($("#queue-list"), inTurn, keyOf, (job) => this.row(job), (row, job) => this.update(row, job));
    $("#queue-none").hidden = active.length > 0;
    const waiting = active.filter((job) => job.state === "queued").length;
    say($("#queue-count"), active.length ? `${count(active.length, "job")}, ${waiting} waiting` : "");
    $("#ended").hidden = ended.length === 0;
    reconcile($("#ended-list"), ended, keyOf, (job) => this.row(job), (row, job) => this.update(row, job));
  }

  row(job) {
    const open = el("button", { type: "button", class: "title" }, titleOf(job));
    open.title = titleOf(job);
    open.addEventListener("click", () => this.hooks.watch(job.id));
    const cancel = el("button", { type: "button", class: "quiet", "data-cancel": "", "aria-label": `Cancel job ${job.id}: ${titleOf(job)}` }, "Cancel");
    cancel.addEventListener("click", () => this.cancel(job.id));
    return el("li", { class: "job", "data-job": job.id }, el("span", { class: "number" }, String(job.id)), open, el("span", { class: "place" }),
      el("span", { class: "chip" }), hasEnded(job) ? null : cancel);
  }

  update(row, job) {
    row.dataset.state = job.state;
    row.classList.toggle("watched", job.id === this.watched);
    chip($(".chip", row), job);
    say($(".place", row), placeOf(job));
    const cancel = $("[data-cancel]", row);
    if (cancel) cancel.disabled = this.cancelling.has(job.id);
  }

  async cancel(id) {
    this.cancelling.add(id);
    const button = $(`#queue-list [data-job="${id}"] [data-cancel]`);
    if (button) button.disabled = true;
    await this.hooks.cancel(id);
    this.cancelling.delete(id);
  }
}

function placeOf(job) {
  if (job.state === "failed") return job.error?.message ?? faultOf(job.interrupted);
  if (job.state === "cancelled") return job.ended ? ago(job.ended) : "";
  if (job.state === "queued") return job.ahead ? `${job.ahead} before it` : "next";
  const progress = progressOf(job);
  return progress ? `call ${progress.call} of ${progress.calls}` : "starting";
}
