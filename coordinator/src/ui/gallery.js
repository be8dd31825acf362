// Finished images, with all that they were made with.

import * as api from "./api.js";
import { $, el, icon, reconcile, say, tell } from "./dom.js";
import { keyOf, ratioOf, recoveries, settings, terms, titleOf, waitTable, who } from "./facts.js";
import { ago, moment, seconds, sentence } from "./format.js";

const PAGE = 24;

export class Gallery {
  constructor(hooks) {
    this.hooks = hooks;
    this.jobs = [];
    this.next = null;
    this.dialog = $("#job-dialog");
    $("#gallery-more").addEventListener("click", () => this.more());
  }

  // Takes in what ended since; what was shown stays.
  async refresh() {
    const { jobs, next } = await api.jobs(["finished"], PAGE);
    const oldest = jobs.at(-1)?.id ?? 0;
    const further = next ? this.jobs.filter((job) => job.id < oldest) : [];
    if (!further.length) this.next = next;
    this.jobs = [...jobs, ...further];
    this.draw();
  }

  async more() {
    const button = $("#gallery-more");
    button.disabled = true;
    try {
      const { jobs, next } = await api.jobs(["finished"], PAGE, this.next);
      this.jobs.push(...jobs);
      this.next = next;
      this.draw();
    } catch (error) {
      tell(sentence(error.message));
    } finally {
      button.disabled = false;
    }
  }

  draw() {
    reconcile($("#gallery-list"), this.jobs, keyOf, (job) => this.card(job), (card, job) => say($("time", card), ago(job.ended ?? job.accepted)));
    $("#gallery-none").hidden = this.jobs.length > 0;
    $("#gallery-more").hidden = !this.next;
    say($("#gallery-count"), this.jobs.length ? `${this.jobs.length}${this.next ? " of more" : ""}` : "");
  }

  card(job) {
    const [width, height] = ratioOf(job);
    const image = el("img", { loading: "lazy", decoding: "async", width, height, alt: "" });
    image.src = api.image(job.id, "jpeg");
    image.addEventListener("error", () => image.closest("li")?.classList.add("void"));
    const open = el("button", { type: "button", class: "thumb", "aria-label": `Job ${job.id}: ${titleOf(job)}` }, image);
    open.addEventListener("click", () => this.open(job));
    const again = el("button", { type: "button", class: "quiet square", "aria-label": `Again with seed ${job.seed}`, title: "Again with this seed" }, icon("again"));
    again.addEventListener("click", () => this.hooks.again(job));
    return el("li", { "data-job": job.id }, open, el("p", { class: "caption", title: titleOf(job) }, titleOf(job)),
      el("p", { class: "line" }, el("span", {}, `seed ${job.seed}`), el("time", {}, ago(job.ended ?? job.accepted)), again));
  }

  open(job) {
    say($("#job-title"), titleOf(job));
    const [width, height] = ratioOf(job);
    const image = el("img", { width, height, alt: titleOf(job) });
    image.src = api.image(job.id, "png");
    const list = el("dl", {});
    terms(list, [...settings(job), ...outcome(job)]);
    $(".sheet-body", this.dialog).replaceChildren(el("div", { class: "shown" }, image), el("div", { class: "told" }, this.actions(job), list, ...this.further(job)));
    this.dialog.showModal();
  }

  actions(job) {
    const again = el("button", { type: "button", class: "primary" }, icon("again"), el("span", {}, "Again with this seed"));
    again.addEventListener("click", () => {
      this.dialog.close();
      this.hooks.again(job);
    });
    const stage = el("button", { type: "button", class: "quiet" }, "Show its timeline");
    stage.addEventListener("click", () => {
      this.dialog.close();
      this.hooks.watch(job.id);
    });
    const save = (format) => el("a", { class: "quiet button", href: api.image(job.id, format), download: `tessera-${job.id}.${format}` }, format.toUpperCase());
    return el("div", { class: "actions" }, again, stage, ...["png", "jpeg", "webp"].map(save));
  }

  further(job) {
    const parts = [el("h3", {}, "Who rendered what"), el("ul", { class: "who" }, ...who(job.bands ?? [])), el("p", { class: "reason" }, job.reason ?? "")];
    if (job.result?.waits.length) parts.push(el("h3", {}, "Workers"), el("div", { class: "scroll" }, waitTable(job.result)));
    if (job.result?.recoveries.length) parts.push(el("h3", {}, "What happened"), el("ul", { class: "plain" }, ...recoveries(job.result.recoveries)));
    return parts;
  }
}

function outcome(job) {
  const { result } = job;
  const rows = [["Job", `${job.id}, by ${job.owner ?? "local"}`], ["Accepted", moment(job.accepted)]];
  if (!result) return rows;
  rows.push(["Took", `${seconds(result.seconds)}, ${seconds(result.seconds_per_step)} a call`]);
  rows.push(["Displaced calls", result.displaced_calls], ["Latent", result.latent]);
  return rows;
}
