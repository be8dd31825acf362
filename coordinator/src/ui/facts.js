// A job in words: what it is, was asked for, and became.

import { el, say } from "./dom.js";
import { bytes, count, percent, seconds } from "./format.js";
import { hue } from "./hues.js";

const STATES = {
  queued: "Queued", running: "Rendering", interrupted: "Broken off", finished: "Finished", failed: "Failed", cancelled: "Cancelled",
};

export const hasEnded = (job) => ["finished", "failed", "cancelled"].includes(job.state);
// A coordinator that keeps no jobs begins anew with their numbers: two of a number are the same if they came at the same time.
export const keyOf = (job) => `${job.id}-${job.accepted}`;
// How far it is, once that is known: before the first call a job's calls are not counted.
export const progressOf = (job) => (job.progress?.calls ? job.progress : null);
export const titleOf = (job) => job.request.prompt;
export const stateOf = (job) => STATES[job.state] ?? job.state;

export function chip(element, job) {
  element.dataset.state = job.state;
  say(element, stateOf(job));
}

// Width to height, as far as is known.
export function ratioOf(job, model) {
  const width = job.spec?.width ?? job.request.width ?? model?.native.width ?? 1;
  const height = job.spec?.height ?? job.request.height ?? model?.native.height ?? 1;
  return [width, height];
}

// What the image was rendered with, or will be.
export function settings(job) {
  const of = { ...withoutNulls(job.request), ...withoutNulls(job.spec ?? {}) };
  const size = of.width && of.height ? `${of.width} × ${of.height}` : "model's own";
  const rows = [
    ["Size", size], ["Steps", of.steps ?? "model's own"], ["Guidance", of.guidance ?? "model's own"], ["Seed", job.seed],
    ["Scheduler", of.scheduler ?? "model's own"], ["Exchange", of.mode ?? "as planned"],
  ];
  if (of.parallelism && of.parallelism !== "patch") rows.push(["Parallelism", of.parallelism]);
  if (job.priority && job.priority !== "normal") rows.push(["Priority", job.priority]);
  if (of.negative) rows.push(["Without", of.negative]);
  if (of.init) rows.push(["Begins with", `a picture, strength ${of.init.strength ?? "of the model's family"}`]);
  for (const lora of of.loras ?? []) rows.push(["LoRA", `${lora.name ?? lora.file} × ${lora.scale}`]);
  if (job.model) rows.push(["Model", job.model]);
  return rows;
}

function withoutNulls(values) {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== null && value !== undefined));
}

// Fills a list of terms, leaving what stands there already.
export function terms(list, rows) {
  const wanted = JSON.stringify(rows);
  if (list.dataset.rows === wanted) return;
  list.dataset.rows = wanted;
  list.replaceChildren(...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))]));
}

const BRANCHES = { prompt: "prompt", negative: "negative", whole: "" };

export function swatch(worker) {
  return el("i", { class: `swatch hue-${hue(worker)}`, "aria-hidden": "true" });
}

export function bandOf(band) {
  return `rows ${band.top}–${band.top + band.rows}`;
}

export function branchOf(band) {
  return BRANCHES[band.branch] ?? band.branch;
}

export function who(bands) {
  return bands.map((band) => el("li", {}, swatch(band.worker), el("b", {}, band.worker),
    el("span", {}, [branchOf(band), bandOf(band)].filter(Boolean).join(" · "))));
}

// What a fault says, with the job's words for the one who asked.
export function faultOf(fault) {
  return fault?.message ?? fault?.cause ?? "";
}

export function recoveries(list) {
  return list.map((once) => el("li", {},
    `Broke off after call ${once.broke_at} and went on from ${once.resumed_at} in ${seconds(once.seconds)}, with ` +
    `${count(once.workers[1], "worker")} instead of ${once.workers[0]}${once.exact ? ", to the same bits" : ""}: ${faultOf(once.fault)}`));
}

// How each worker spent a finished job.
export function waitRows(result) {
  return result.waits.map((wait) => ({
    worker: wait.worker, waited: wait.seconds, share: result.seconds ? wait.seconds / result.seconds : 0,
    sent: wait.posted_bytes, peak: wait.peak_bytes,
  }));
}

export function waitTable(result) {
  const rows = waitRows(result).map((row) => el("tr", {},
    el("th", { scope: "row" }, swatch(row.worker), row.worker),
    el("td", {}, `${seconds(row.waited)} (${percent(row.share)})`), el("td", {}, bytes(row.sent)),
    el("td", {}, row.peak ? bytes(row.peak) : "not told")));
  return el("table", {},
    el("thead", {}, el("tr", {}, ...["Worker", "Waited", "Sent", "Peak memory"].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...rows));
}
