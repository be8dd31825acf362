// Who is there, how fast they are, and what connects them.

import { $, el, reconcile, say } from "./dom.js";
import { swatch } from "./facts.js";
import { bytes, count, duration, rate, short } from "./format.js";
import { hue } from "./hues.js";
import { command } from "./live.js";

// Beyond so many workers a matrix is no longer read; the list beside it says the same.
const MATRIX = 16;

export class Cluster {
  show(view) {
    for (const worker of view.workers) hue(worker.name);
    this.pulse(view);
    say($("#release"), `Tessera ${view.release}, up ${duration(view.up_seconds)}`);
    this.model(view.model);
    this.workers(view);
    this.pairs(view);
  }

  pulse({ workers, model }) {
    const pulse = $("#pulse");
    pulse.dataset.state = workers.length ? (workers.some((worker) => worker.busy) ? "busy" : "ready") : "empty";
    const key = `${model?.name} ${workers.length}`;
    if (pulse.dataset.key === key) return;
    pulse.dataset.key = key;
    $("span", pulse).replaceChildren(workers.length && model ? el("b", {}, `${model.name} · `) : "", workers.length ? count(workers.length, "worker") : "No workers");
  }

  away() {
    Object.assign($("#pulse").dataset, { state: "away", key: "" });
    say($("#pulse span"), "No answer");
  }

  model(model) {
    const rows = model ? [
      ["Name", model.name], ["Family", model.family], ["Weights", `${model.dtype}, ${bytes(model.weight_bytes)}`],
      ["Own size", `${model.native[0]} × ${model.native[1]}`], ["Scheduler", model.scheduler], ["Digest", model.digest.slice(0, 16)],
    ] : [["Name", "known once a worker has joined"]];
    const list = $("#model");
    const wanted = JSON.stringify(rows);
    if (list.dataset.rows === wanted) return;
    list.dataset.rows = wanted;
    list.replaceChildren(...rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  }

  workers({ workers, join }) {
    say($("#workers-count"), workers.length ? String(workers.length) : "");
    $("#workers-table").hidden = workers.length === 0;
    const fastest = Math.max(1, ...workers.map((worker) => worker.speed));
    reconcile($("#workers-rows"), workers, (worker) => worker.id, () => row(), (row, worker) => fill(row, worker, fastest));
    const place = $("#join-few");
    const key = `${join} ${workers.length === 0}`;
    if (place.dataset.key === key) return;
    place.dataset.key = key;
    place.replaceChildren(el("h3", {}, workers.length ? "One more" : "No worker has joined yet"),
      el("p", {}, workers.length ? "Workers may join at any time, also while an image is rendered." : "Start one on each machine that is to help:"), command(join));
  }

  pairs({ workers, pairs }) {
    $("#fabrics-none").hidden = pairs.length > 0;
    $(".fabrics").hidden = pairs.length === 0;
    const names = new Map(workers.map((worker) => [worker.id, worker.name]));
    this.matrix(workers, pairs);
    const fabrics = Map.groupBy(pairs, (pair) => pair.fabric ?? "none");
    reconcile($("#pairs"), [...fabrics.entries()], ([fabric, group]) => `${fabric} ${JSON.stringify(group)}`, ([fabric, group]) => fabricItem(fabric, group, names));
  }

  matrix(workers, pairs) {
    const table = $("#matrix");
    const shown = workers.length > 1 && workers.length <= MATRIX;
    table.hidden = !shown;
    const key = JSON.stringify([workers.map((worker) => worker.id), pairs]);
    if (!shown || table.dataset.key === key) return;
    table.dataset.key = key;
    const between = (one, other) => pairs.find((pair) => pair.workers.includes(one.id) && pair.workers.includes(other.id));
    const cell = (one, other) => {
      if (one.id === other.id) return el("td", { class: "self" });
      const pair = between(one, other);
      const text = pair ? pair.fabric ?? "none" : "";
      return el("td", { "data-fabric": text, title: pair?.why || null }, text);
    };
    table.replaceChildren(
      el("thead", {}, el("tr", {}, el("td"), ...workers.map((worker) => el("th", { scope: "col" }, swatch(worker.name), el("span", { class: "unseen" }, worker.name))))),
      el("tbody", {}, ...workers.map((one) => el("tr", {}, el("th", { scope: "row" }, swatch(one.name), one.name), ...workers.map((other) => cell(one, other))))));
  }
}

function row() {
  const cell = (label) => el("td", { "data-label": label });
  return el("tr", {}, el("th", { scope: "row" }), cell("Does"), cell("Speed"), cell("Memory"), cell("Computes with"), cell("Address"));
}

function fill(row, worker, fastest) {
  const key = JSON.stringify([worker, fastest]);
  if (row.dataset.shown === key) return;
  row.dataset.shown = key;
  const [name, does, speed, memory, computes, address] = row.children;
  name.replaceChildren(swatch(worker.name), worker.name, el("small", {}, ` worker-${worker.id}`));
  const [job, rank] = worker.busy ?? [];
  const state = worker.draining ? "leaves" : worker.busy ? "busy" : "idle";
  does.replaceChildren(el("span", { class: "chip", "data-state": state }, worker.draining ? "Leaves" : worker.busy ? `Job ${job}, rank ${rank}` : "Idle"));
  const bar = el("i", { class: `bar hue-${hue(worker.name)}`, "aria-hidden": "true" });
  bar.style.setProperty("--share", worker.speed / fastest);
  speed.replaceChildren(bar, el("span", {}, `${short(worker.speed)}px/s`));
  speed.title = "Latent pixels a second of one prediction";
  say(memory, bytes(worker.resident_bytes));
  say(computes, `${count(worker.threads, "thread")}, ${worker.kernels}`);
  address.replaceChildren(el("code", {}, worker.address));
  if (worker.identity) address.title = `Its key: ${worker.identity}`;
}

// The pairs of a fabric, those together that have it for the same reason.
function fabricItem(fabric, pairs, names) {
  const name = (pair) => pair.workers.map((worker) => names.get(worker) ?? `worker-${worker}`).join(" – ");
  const figures = (pair) => (pair.figures ? ` ${Math.round(pair.figures.latency_us)} µs, ${rate(pair.figures.bytes_per_second)}` : "");
  const reasons = Map.groupBy(pairs, (pair) => pair.why);
  return el("li", {}, el("h3", {}, el("span", { class: "fabric", "data-fabric": fabric }, fabric), count(pairs.length, "pair")),
    ...[...reasons.entries()].map(([why, group]) => el("div", {},
      el("p", { class: "members" }, group.map((pair) => name(pair) + figures(pair)).join(" · ")), why ? el("p", { class: "reason" }, why) : null)));
}
