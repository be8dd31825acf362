// The page: what it asks the coordinator for, and who shows the answers.

import * as api from "./api.js";
import { Cluster } from "./cluster.js";
import { $, $$, announce, say, tell } from "./dom.js";
import { keyOf } from "./facts.js";
import { Form } from "./form.js";
import { sentence } from "./format.js";
import { Gallery } from "./gallery.js";
import * as key from "./key.js";
import { Live } from "./live.js";
import { Poll } from "./poll.js";
import { Queue } from "./queue.js";
import { load, save } from "./store.js";
import { Timeline } from "./timeline.js";

const ACTIVE = ["running", "interrupted", "queued"];
const JOBS_SECONDS = 1.5;
const CLUSTER_SECONDS = 2.5;
// So many jobs without an image are listed.
const ENDED_SHOWN = 5;

const hooks = {
  watch: async (id) => {
    const job = await api.job(id).catch((error) => tell(sentence(error.message)));
    if (!job) return;
    pinned = new Set(known);
    watch(job);
    $("#stage").scrollIntoView({ block: "nearest", behavior: "smooth" });
  },
  cancel,
  again: (job) => form.fill(job),
  ended: () => {
    pinned = null;
    stale = true;
    jobsPoll.now();
  },
};

const cluster = new Cluster();
const gallery = new Gallery(hooks);
const queue = new Queue(hooks);
const live = new Live(new Timeline(), hooks);
const form = new Form((job) => {
  if (!live.isBusy()) watch(job);
  jobsPoll.now();
  if (matchMedia("(max-width: 900px)").matches) $("#stage").scrollIntoView({ block: "start", behavior: "smooth" });
});

let known = new Set();
let model = null;
// Whether something ended since the gallery was asked for.
let stale = true;
// Jobs that there were when someone chose what to look at: none of them takes its place.
let pinned = null;

function watch(job) {
  live.watch(job);
  queue.watched = job.id;
}

async function cancel(id) {
  try {
    await api.cancel(id);
    announce(`Job ${id} is being cancelled.`);
  } catch (error) {
    // It ended by itself meanwhile: the list will say how.
    if (error.status !== 409) tell(sentence(error.message));
  }
  await jobsPoll.now();
}

// The jobs that wait or run: what to look at follows from them, unless someone chose.
async function showJobs() {
  const { jobs: active } = await api.jobs(ACTIVE, 200);
  const ids = new Set(active.map((job) => job.id));
  if ([...known].some((id) => !ids.has(id))) stale = true;
  known = ids;
  const looked = active.find((job) => live.job && keyOf(job) === keyOf(live.job));
  if (looked) live.refresh(looked);
  else if (live.isBusy()) await lookAgain();
  if (!live.isBusy()) {
    const next = active.find((job) => job.state === "running") ?? active.find((job) => job.state === "interrupted") ?? active.at(-1);
    if (next && !pinned?.has(next.id)) live.watch(next);
  }
  queue.watched = live.job?.id ?? null;
  queue.show(active, queue.ended ?? []);
  if (stale) await refresh();
}

// Asks for the job that is looked at, which neither waits nor runs any more.
async function lookAgain() {
  const { job } = live;
  const now = await api.job(job.id).catch((error) => {
    if (error.status === 404) return null;
    throw error;
  });
  if (live.job !== job && keyOf(live.job) !== keyOf(job)) return;
  if (now && keyOf(now) === keyOf(job)) live.refresh(now);
  else live.forget();
}

async function refresh() {
  const [, { jobs }] = await Promise.all([gallery.refresh(), api.jobs(["failed", "cancelled"], ENDED_SHOWN)]);
  stale = false;
  queue.ended = jobs;
  queue.show(queue.active, jobs);
}

async function showCluster() {
  const view = await api.cluster();
  if (view.workers.length && (!model || model.digest !== view.model?.digest)) {
    const models = await api.models();
    model = models.find((one) => one.digest === view.model?.digest) ?? models[0] ?? null;
  }
  form.know(model);
  cluster.show(view);
  live.know(view, model);
}

function showView() {
  const name = location.hash === "#cluster" ? "cluster" : "images";
  for (const view of $$(".view")) view.hidden = view.id !== name;
  for (const link of $$("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = name === "cluster" ? "Cluster · Tessera" : "Tessera";
}

const THEMES = { auto: "as the system", light: "light", dark: "dark" };

function showTheme() {
  const theme = load("theme") ?? "auto";
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  const button = $("#theme");
  button.setAttribute("aria-label", `Theme: ${THEMES[theme]}`);
  button.title = `Theme: ${THEMES[theme]}`;
  $("use", button).setAttribute("href", `#icon-${{ auto: "auto", light: "sun", dark: "moon" }[theme]}`);
}

function beginTheme() {
  $("#theme").addEventListener("click", () => {
    const order = Object.keys(THEMES);
    const next = order[(order.indexOf(load("theme") ?? "auto") + 1) % order.length];
    save("theme", next === "auto" ? undefined : next);
    showTheme();
    announce(`Theme: ${THEMES[next]}`);
  });
  showTheme();
}

function beginDialogs() {
  for (const dialog of $$("dialog")) {
    for (const button of $$("[data-close]", dialog)) button.addEventListener("click", () => dialog.close());
    // A click beside the sheet closes it, as Escape does.
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  }
}

api.onAway((away) => {
  $("#away").hidden = !away;
  if (!away) {
    announce("The coordinator answers again.");
    jobsPoll.now();
    clusterPoll.now();
    return;
  }
  say($("#away span"), "The coordinator does not answer. The page goes on by itself once it does.");
  cluster.away();
});

if (/Mac|iP(hone|ad)/.test(navigator.platform)) for (const keys of [$("#shortcut"), $("#footer-shortcut")]) say(keys, "⌘ ↵");
beginTheme();
beginDialogs();
addEventListener("hashchange", showView);
showView();
key.begin(() => {
  jobsPoll.now();
  clusterPoll.now();
});
const jobsPoll = new Poll(showJobs, JOBS_SECONDS);
const clusterPoll = new Poll(showCluster, CLUSTER_SECONDS);
