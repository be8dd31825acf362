// Calls to the coordinator: docs/http.md and /openapi.json say what there is.

import { load, save } from "./store.js";

// A call that takes longer is as good as unanswered.
const PATIENCE_MS = 15000;
// A file may be large, and the way slow.
const FILE_PATIENCE_MS = 3600000;

// What the coordinator refused, and why.
export class Refusal extends Error {
  constructor(status, error, retryAfter) {
    super(error?.message ?? `the coordinator answered with status ${status}`);
    Object.assign(this, { status, type: error?.type, param: error?.param, code: error?.code, retryAfter });
  }
}

// Nobody answered.
export class Away extends Error {}

let away = false;
let unlock = () => Promise.resolve(false);
let unlocking = null;
const watchers = new Set();

export function onAway(watcher) {
  watchers.add(watcher);
}

// `ask` resolves once there is a new key to try, or to false.
export function onLocked(ask) {
  unlock = ask;
}

function be(isAway) {
  if (isAway === away) return;
  away = isAway;
  for (const watcher of watchers) watcher(away);
}

export const key = () => load("key");
export const setKey = (value) => save("key", value || undefined);

// The address of a path for images and event streams, which send no headers.
export function address(path) {
  if (!key()) return path;
  return `${path}${path.includes("?") ? "&" : "?"}key=${encodeURIComponent(key())}`;
}

// Seeds have 64 bits, numbers of this language 53: long ones stay text.
export function parse(text) {
  return JSON.parse(text.replace(/"seed":\s*(\d{16,})/g, '"seed":"$1"'));
}

export function write(body) {
  return JSON.stringify(body).replace(/"seed":"(\d+)"/g, '"seed":$1');
}

async function request(method, path, body, headers) {
  const given = key();
  const isFile = body instanceof Blob;
  try {
    return await fetch(path, {
      method,
      body: body === undefined || isFile ? body : write(body),
      headers: {
        ...(body === undefined ? {} : { "Content-Type": isFile ? "application/octet-stream" : "application/json" }),
        ...(given ? { Authorization: `Bearer ${given}` } : {}),
        ...headers,
      },
      signal: AbortSignal.timeout(isFile ? FILE_PATIENCE_MS : PATIENCE_MS),
      cache: "no-store",
    });
  } catch {
    be(true);
    throw new Away("the coordinator does not answer");
  }
}

// Whoever is refused meanwhile waits for the same answer.
function unlocked(wrong) {
  unlocking ??= unlock(wrong).finally(() => (unlocking = null));
  return unlocking;
}

export async function call(method, path, body, headers = {}) {
  const tried = key();
  const response = await request(method, path, body, headers);
  be(false);
  if (response.status === 401 && (key() !== tried || (await unlocked(Boolean(tried))))) {
    return call(method, path, body, headers);
  }
  const text = await response.text().catch(() => "");
  let answer = null;
  try {
    answer = text ? parse(text) : null;
  } catch {
    // Not ours: something between the page and the coordinator answered.
  }
  if (!response.ok) throw new Refusal(response.status, answer?.error, Number(response.headers.get("Retry-After")) || null);
  return answer;
}

export const job = (id) => call("GET", `/v1/jobs/${id}`);
export const cancel = (id) => call("DELETE", `/v1/jobs/${id}`);
export const cluster = () => call("GET", "/v1/cluster");
export const models = () => call("GET", "/v1/models").then((answer) => answer.data);
export const submit = (request, once) => call("POST", "/v1/jobs", request, { "Idempotency-Key": once });

// Sends a file that jobs are to be rendered with.
export const send = (file) => call("POST", "/v1/files", file);
export const file = (id) => call("GET", `/v1/files/${id}`);
export const picture = (id) => address(`/v1/files/${id}/picture`);

export function jobs(states, limit, before) {
  const query = new URLSearchParams({ state: states.join(","), limit });
  if (before) query.set("before", before);
  return call("GET", `/v1/jobs?${query}`);
}

export const image = (id, format) => address(`/v1/jobs/${id}/image?format=${format}`);
export const preview = (id) => address(`/v1/jobs/${id}/preview`);

const EVENTS = [
  "queued", "started", "notice", "interrupted", "resumed", "phase", "step", "profiled", "finished", "failed",
];

// Hears of a job until its end, whatever happens to the connection. Gives what ends it.
export function follow(id, hear) {
  let source = null;
  let again = null;
  let done = false;
  const open = () => {
    source = new EventSource(address(`/v1/jobs/${id}/events`));
    for (const name of EVENTS) {
      source.addEventListener(name, (event) => {
        if (name === "finished" || name === "failed") stop();
        hear(name, parse(event.data));
      });
    }
    source.addEventListener("error", () => {
      // Left to itself the browser tries again, but not where it was refused.
      if (done || source.readyState !== EventSource.CLOSED) return;
      again = setTimeout(open, 2000);
    });
  };
  const stop = () => {
    done = true;
    clearTimeout(again);
    source.close();
  };
  open();
  return stop;
}

// A name for one submission, however often it is sent. crypto.randomUUID is missing on plain HTTP.
export function once() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
