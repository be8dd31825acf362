// The stage: the job that is looked at, from its place in the queue to its image.

import * as api from "./api.js";
import { $, announce, el, icon, copy, reconcile, say } from "./dom.js";
import { bandOf, branchOf, chip, faultOf, hasEnded, keyOf, progressOf, ratioOf, settings, terms, titleOf, who } from "./facts.js";
import { count, duration, seconds } from "./format.js";
import { hue } from "./hues.js";

const PHASES = { text_encoding: "Reading the prompt", denoising: "Denoising", decoding: "Decoding" };
// Over so many calls the speed of the next ones is guessed.
const RECENT = 8;

export class Live {
  constructor(timeline, hooks) {
    Object.assign(this, { timeline, hooks, job: null, model: null, cluster: null, stop: null });
    this.reset();
    $("#stage-cancel").addEventListener("click", () => this.cancel());
    $("#stage-again").addEventListener("click", () => this.hooks.again(this.job));
    $("#bands-toggle").addEventListener("click", () => this.toggleBands());
    $("#picture").addEventListener("error", () => $("#picture").classList.add("void"));
    $("#picture").addEventListener("load", () => $("#picture").classList.remove("void"));
    this.draw();
  }

  reset() {
    Object.assign(this, { steps: [], phase: null, wanted: null, notices: [], said: 0, cancelling: false, bandsWanted: null });
  }

  // Looks at `job` from now on.
  watch(job) {
    if (this.job && keyOf(this.job) === keyOf(job)) return this.refresh(job);
    this.stop?.();
    this.stop = null;
    this.reset();
    this.job = job;
    this.timeline.begin(job);
    this.clearPicture();
    if (hasEnded(job)) this.finishPicture();
    else {
      if (job.progress) this.showPreview(api.preview(job.id));
      this.stop = api.follow(job.id, (name, event) => this.hear(name, event));
    }
    this.draw();
  }

  // Takes what the list of jobs says. While events come they say it sooner, but for the end of a job whose
  // events did not come through.
  refresh(job) {
    if (!this.job || keyOf(this.job) !== keyOf(job) || hasEnded(this.job)) return;
    if (hasEnded(job)) {
      this.stop?.();
      this.job = job;
      this.ended();
    } else {
      this.job.ahead = job.ahead;
      if (!this.steps.length) Object.assign(this.job, job);
    }
    this.draw();
  }

  // The coordinator was started anew, and kept nothing of the job.
  forget() {
    this.stop?.();
    const message = "The coordinator was started anew, and keeps no jobs.";
    Object.assign(this.job, { state: "failed", error: { kind: "unknown_job", message } });
    this.stop = null;
    this.draw();
  }

  isBusy() {
    return this.job !== null && !hasEnded(this.job);
  }

  know(cluster, model) {
    this.cluster = cluster;
    this.model = model;
    this.draw();
  }

  hear(name, event) {
    this.on[name]?.call(this, event);
    this.timeline.hear(name, event, this.job);
    if (name !== "profiled") this.draw();
  }

  on = {
    queued(event) {
      this.job.ahead = event.ahead;
      this.wanted = event;
    },
    started({ spec, model, bands, reason }) {
      Object.assign(this.job, { state: "running", spec, model, bands, reason, ahead: null, interrupted: null });
      announce(`Job ${this.job.id} is rendered by ${count(bands.length, "worker")}.`);
    },
    notice({ text }) {
      this.notices.push(text);
    },
    interrupted({ fault }) {
      Object.assign(this.job, { state: "interrupted", interrupted: fault });
    },
    resumed({ bands, reason }) {
      Object.assign(this.job, { state: "running", interrupted: null, bands, reason });
    },
    phase({ phase }) {
      this.phase = phase;
    },
    step(event) {
      Object.assign(this.job, { state: "running", interrupted: null, progress: { call: event.call, calls: event.calls } });
      this.phase = event.call < event.calls ? "denoising" : this.phase;
      this.steps.push(event);
      if (event.preview) this.showPreview(event.preview);
      const quarter = Math.floor((4 * event.call) / event.calls);
      if (quarter > this.said && quarter < 4) announce(`${quarter * 25} % of job ${this.job.id}`);
      this.said = quarter;
    },
    async finished() {
      this.job.state = "finished";
      const { id } = this.job;
      announce(`Job ${id} is finished.`);
      await this.settle(id);
    },
    async failed({ fault }) {
      const cancelled = fault.kind === "cancelled";
      Object.assign(this.job, { state: cancelled ? "cancelled" : "failed", error: { kind: fault.kind, message: faultOf(fault) } });
      announce(`Job ${this.job.id} ${cancelled ? "was cancelled" : `failed: ${faultOf(fault)}`}.`);
      await this.settle(this.job.id);
    },
  };

  // Takes the whole of an ended job, which says more than its events.
  async settle(id) {
    const job = await api.job(id).catch(() => null);
    if (job && this.job.id === id) this.job = job;
    if (this.job.id === id) this.ended();
    this.draw();
  }

  ended() {
    this.stop = null;
    this.finishPicture();
    this.timeline.end(this.job);
    this.hooks.ended(this.job);
  }

  async cancel() {
    this.cancelling = true;
    this.draw();
    await this.hooks.cancel(this.job.id);
    this.cancelling = false;
    this.draw();
  }

  // Bands are drawn over a picture that is not finished, and over another if asked for.
  showsBands() {
    return this.bandsWanted ?? !hasEnded(this.job);
  }

  toggleBands() {
    this.bandsWanted = !this.showsBands();
    this.draw();
  }

  clearPicture() {
    const picture = $("#picture");
    picture.removeAttribute("src");
    picture.alt = "";
    picture.className = "void";
  }

  showPreview(source) {
    const picture = $("#picture");
    picture.src = source;
    picture.classList.add("latent");
    picture.alt = `What job ${this.job.id} looks like so far`;
  }

  // Shows the image once it is there as a whole: until then the last preview stays.
  async finishPicture() {
    const { id, state } = this.job;
    if (state !== "finished") return;
    const image = new Image();
    image.src = api.image(id, "png");
    await image.decode().catch(() => null);
    if (this.job.id !== id || !image.naturalWidth) return;
    const picture = $("#picture");
    picture.src = image.src;
    picture.alt = titleOf(this.job);
    picture.classList.remove("latent", "void");
  }

  draw() {
    const { job } = this;
    $("#frame").hidden = !job;
    $("#empty").hidden = Boolean(job) && !this.isStranded();
    $("#stage").dataset.state = job?.state ?? "idle";
    if (!job || this.isStranded()) this.drawEmpty();
    if (!job) return;
    chip($("#stage-state"), job);
    say($("#stage-title"), titleOf(job));
    $("#stage-title").title = titleOf(job);
    $("#stage-cancel").hidden = hasEnded(job);
    $("#stage-cancel").disabled = this.cancelling;
    $("#stage-again").hidden = !hasEnded(job);
    $("#stage-save").hidden = job.state !== "finished";
    if (job.state === "finished") {
      $("#stage-save").href = api.image(job.id, "png");
      $("#stage-save").download = `tessera-${job.id}.png`;
    }
    const [width, height] = ratioOf(job, this.model);
    $("#frame").style.setProperty("--ratio", width / height);
    this.drawBands(height);
    this.drawFacts();
    this.drawProgress();
  }

  // A job that waits where no worker has ever been: what is to be done matters more than its frame.
  isStranded() {
    return this.job?.state === "queued" && this.cluster?.workers.length === 0;
  }

  drawEmpty() {
    const none = this.cluster && this.cluster.workers.length === 0;
    const key = none ? `join ${this.cluster.join} ${Boolean(this.job)}` : this.cluster ? "ready" : "unknown";
    const place = $("#empty");
    if (place.dataset.key === key) return;
    place.dataset.key = key;
    if (none) {
      const more = this.job ? "The job waits for the first one." : "Images can be asked for already: they wait for the first one.";
      place.replaceChildren(el("h3", {}, "No worker has joined yet"), el("p", {}, "Start one on each machine that is to help:"), command(this.cluster.join), el("p", { class: "hint" }, more));
    } else if (this.cluster) {
      place.replaceChildren(el("div", { class: "tiles", "aria-hidden": "true" }, el("i"), el("i"), el("i"), el("i")), el("h3", {}, "Describe an image"), el("p", {}, "It appears here while it is rendered, and shows which worker renders what."));
    } else place.replaceChildren();
  }

  drawBands(height) {
    const { bands = [] } = this.job;
    $("#bands-toggle").hidden = bands.length === 0;
    $("#bands-toggle").setAttribute("aria-pressed", String(this.showsBands()));
    $("#bands").classList.toggle("faded", !this.showsBands());
    reconcile($("#bands"), bands, (band) => `${band.rank} ${band.worker} ${band.top} ${band.rows} ${band.branch}`, (band) => {
      const element = el("div", { class: `band hue-${hue(band.worker)}${band.top ? " inner" : ""}`, "data-branch": band.branch },
        el("span", {}, el("b", {}, band.worker), ` ${branchOf(band) || bandOf(band)}`));
      element.style.top = `${(100 * band.top) / height}%`;
      element.style.height = `${(100 * band.rows) / height}%`;
      // Where all ranks have the whole image, their names are below each other.
      const above = bands.filter((other) => other.rank < band.rank && other.top === band.top && other.branch === band.branch);
      if (above.length) element.firstElementChild.style.top = `${6 + 25 * above.length}px`;
      return element;
    });
  }

  drawFacts() {
    const { job } = this;
    const bands = job.bands ?? [];
    const key = JSON.stringify(bands);
    if ($("#who").dataset.key !== key) {
      $("#who").dataset.key = key;
      $("#who").replaceChildren(...(bands.length ? who(bands) : [el("li", { class: "none" }, "Known once it starts.")]));
    }
    say($("#reason"), job.reason ?? "");
    terms($("#settings"), settings(job));
  }

  drawProgress() {
    const { job } = this;
    const { call, calls } = progressOf(job) ?? { call: job.state === "finished" ? 1 : 0, calls: 1 };
    const share = job.state === "finished" ? 1 : call / calls;
    const bar = $("#progress");
    bar.firstElementChild.style.transform = `scaleX(${share})`;
    bar.setAttribute("aria-valuenow", Math.round(share * 100));
    bar.setAttribute("aria-valuetext", this.words());
    bar.classList.toggle("waits", job.state === "queued" || (job.state === "running" && !progressOf(job)));
    say($("#progress-text"), this.words());
    say($("#progress-rest"), this.rest());
    const notice = job.state === "interrupted" ? faultOf(job.interrupted) : this.notices.at(-1) ?? "";
    say($("#notice"), notice);
  }

  words() {
    const { job, phase } = this;
    switch (job.state) {
      case "queued": return this.waitsFor();
      case "interrupted": return "Broken off; it goes on with those that are left.";
      case "finished": return finishedIn(job);
      case "failed": return job.error?.message ?? "It failed.";
      case "cancelled": return "Cancelled.";
      default: break;
    }
    if (this.cancelling) return "Ends after this call";
    const { call, calls } = progressOf(job) ?? {};
    if (phase === "decoding" || (call && call === calls)) return "Decoding the image";
    return call ? `Call ${call} of ${calls}` : PHASES[phase] ?? "Starting";
  }

  waitsFor() {
    const { ahead } = this.job;
    if (ahead) return `${count(ahead, "job")} before it`;
    const { workers, wanted } = this.wanted ?? {};
    if (wanted > workers) return `Waits for workers: ${workers} of ${wanted} ${wanted === 1 ? "is" : "are"} there`;
    return "Next in turn";
  }

  rest() {
    const { job } = this;
    if (job.state !== "running" || !progressOf(job)) return "";
    const recent = this.steps.slice(-RECENT);
    if (!recent.length) return "";
    const mean = recent.reduce((sum, step) => sum + step.seconds, 0) / recent.length;
    const left = (job.progress.calls - job.progress.call) * mean;
    return left > 0 ? `${seconds(mean)} a call · about ${duration(Math.max(1, left))} left` : `${seconds(mean)} a call`;
  }
}

function finishedIn(job) {
  const { result } = job;
  if (!result) return "Finished";
  return `${seconds(result.seconds)} · ${seconds(result.seconds_per_step)} a call`;
}

// A command to be copied into a terminal.
export function command(text) {
  const code = el("code", { tabindex: "0" }, text);
  const button = el("button", { type: "button", class: "quiet" }, icon("copy"), el("span", {}, "Copy"));
  button.addEventListener("click", () => copy(code, button));
  return el("div", { class: "command" }, code, button);
}
