// The form: what is asked for, remembered from visit to visit.

import * as api from "./api.js";
import { $, $$, announce, el, say } from "./dom.js";
import { count, sentence } from "./format.js";
import { Given, givenOf } from "./given.js";
import { load, save } from "./store.js";

const TEXTS = ["prompt", "negative", "seed", "scheduler", "mode", "cfg_split", "wire", "priority"];
const NUMBERS = ["steps", "guidance", "workers"];
// What is remembered as it stands, and said in its own way.
const OTHERS = ["warmup", "width", "height", "init.strength"];
const CHECKS = ["deterministic", "profile"];

// What a request may say that the form has no field for, with what is meant when nothing is said: taken from a job that is to
// be rendered again, shown in words, and left out at will.
const FURTHER = {
  parallelism: "patch", gn_variance: "population", dtype: null, model: null, bands: "auto", decode: "auto", fabrics: [], rebalance: false,
};

// Width to height; `own` is the size that the model was trained at, `double` twice that.
const PRESETS = [
  { name: "own", label: "Model's own", ratio: [1, 1], scale: 1 },
  { name: "portrait", label: "Portrait", ratio: [3, 4], scale: 1 },
  { name: "landscape", label: "Landscape", ratio: [4, 3], scale: 1 },
  { name: "wide", label: "Wide", ratio: [16, 9], scale: 1 },
  { name: "double", label: "Double", ratio: [1, 1], scale: 2 },
  { name: "custom", label: "Custom" },
];

const MODES = {
  "": "Corrected from 10 steps on, exact below.",
  corrected: "Neighbours' values are one call old, group norms corrected by the own band's change.",
  "full-sync": "Exact: every call waits for its neighbours.",
  stale: "Neighbours' values and their group statistics are one call old.",
  "sync-gn": "Neighbours' values are one call old, but group statistics are waited for.",
  separate: "Neighbours' values are one call old, group norms see the own band only.",
  "no-sync": "Nothing is sent after the warm-up. To compare with.",
};

// The size of a preset on a model, in pixels.
export function sizeOf(preset, model) {
  const [width, height] = [model.native.width, model.native.height];
  if (preset.name === "own") return [width, height];
  const unit = model.row_unit_pixels || 64;
  const round = (pixels) => Math.max(unit, Math.round(pixels / unit) * unit);
  const [across, down] = preset.ratio;
  // As many pixels as the model's own size has, times the scale's square.
  const side = Math.sqrt(width * height) * preset.scale;
  return [round(side * Math.sqrt(across / down)), round(side * Math.sqrt(down / across))];
}

export class Form {
  constructor(submitted) {
    this.form = $("#form");
    this.submitted = submitted;
    this.model = null;
    this.size = "own";
    // The submission that is under way or was not answered: sent again, it makes no second job.
    this.pending = null;
    this.given = new Given(() => this.givenChanged(), (name, message) => (message ? this.blame(name, message) : this.clear(name)));
    this.presets();
    this.recall(load("form") ?? {});
    this.listen();
  }

  field(name) {
    return this.form.elements[name];
  }

  presets() {
    const glyph = ([across, down]) => {
      const box = el("i", { class: "glyph", "aria-hidden": "true" });
      const longest = Math.max(across, down);
      box.style.width = `${(across / longest) * 16}px`;
      box.style.height = `${(down / longest) * 16}px`;
      return box;
    };
    $(".presets").append(...PRESETS.map((preset) =>
      el("label", { class: "preset", "data-preset": preset.name },
        el("input", { type: "radio", name: "size", value: preset.name }),
        el("span", {}, preset.ratio ? glyph(preset.ratio) : el("i", { class: "glyph free", "aria-hidden": "true" }),
          el("b", {}, preset.label), el("small", {}, preset.ratio ? "\u00a0" : "any")))));
  }

  listen() {
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || $("dialog[open]")) return;
      event.preventDefault();
      this.submit();
    });
    this.form.addEventListener("input", (event) => {
      if (event.target.name === "seed") this.showRandom();
      if (event.target.name === "size") this.choose(event.target.value);
      if (event.target.name === "mode") this.explain();
      if (event.target.name) this.clear(event.target.name === "size" ? "width" : event.target.name);
      this.remember();
    });
    $("#random").addEventListener("click", () => {
      const seed = this.field("seed");
      if (seed.value) seed.value = "";
      else seed.value = String(crypto.getRandomValues(new Uint32Array(1))[0]);
      this.clear("seed");
      this.showRandom();
      this.remember();
    });
    $("#reset").addEventListener("click", () => {
      const prompt = this.field("prompt").value;
      this.recall({ prompt, advanced: true });
      this.clearAll();
      this.remember();
    });
    $("#further button").addEventListener("click", () => {
      this.showFurther({});
      this.remember();
    });
    $("#advanced > summary").addEventListener("click", () => {
      requestAnimationFrame(() => $("#advanced").scrollIntoView({ block: "nearest", behavior: "smooth" }));
    });
    $("#advanced").addEventListener("toggle", () => this.remember());
  }

  remember() {
    const values = { size: this.size, advanced: $("#advanced").open, further: this.further, given: this.given.memory() };
    for (const name of [...TEXTS, ...NUMBERS, ...OTHERS]) values[name] = this.field(name).value;
    for (const name of CHECKS) values[name] = this.field(name).checked;
    save("form", values);
  }

  recall(values) {
    for (const name of [...TEXTS, ...NUMBERS, ...OTHERS]) this.set(name, values[name] ?? "");
    this.field("deterministic").checked = values.deterministic ?? false;
    this.field("profile").checked = values.profile ?? true;
    $("#advanced").open = values.advanced ?? false;
    this.choose(PRESETS.some((preset) => preset.name === values.size) ? values.size : "own");
    this.showFurther(values.further ?? {});
    this.showRandom();
    this.explain();
    this.given.recall(values.given);
  }

  // Sets a field. A choice that is not known yet, as of a model that is still to join, becomes one.
  set(name, value) {
    const field = this.field(name);
    const text = String(value);
    if (field.tagName === "SELECT" && ![...field.options].some((option) => option.value === text)) {
      field.append(el("option", {}, text));
    }
    field.value = text;
  }

  choose(name) {
    this.size = name;
    $(`input[value="${name}"]`, $("#sizes")).checked = true;
    $("#custom").hidden = name !== "custom";
    if (name === "custom" && this.model && !this.field("width").value) {
      this.field("width").value = this.model.native.width;
      this.field("height").value = this.model.native.height;
    }
  }

  explain() {
    say($("#hint-mode"), MODES[this.field("mode").value] ?? "");
  }

  showFurther(further) {
    this.further = further;
    const said = Object.entries(further).map(([name, value]) => `${name} ${value}`);
    $("#further").hidden = said.length === 0;
    say($("#further span"), `Also as in that job: ${said.join(", ")}`);
  }

  showRandom() {
    $("#random").setAttribute("aria-pressed", String(!this.field("seed").value));
  }

  givenChanged() {
    this.showOwn();
    this.remember();
  }

  // Whose size it is if no other is chosen: the picture's that the image begins with, if there is one.
  showOwn() {
    const { picture } = this.given;
    const label = $('[data-preset="own"]');
    say($("b", label), picture ? "Picture's" : "Model's own");
    const size = picture?.width ? [picture.width, picture.height] : this.model && sizeOf(PRESETS[0], this.model);
    if (size) say($("small", label), size.join(" × "));
  }

  // What the cluster's model makes of what is left open.
  know(model) {
    if (!model || (this.model && model.digest === this.model.digest)) return;
    this.model = model;
    const sizes = new Set();
    for (const preset of PRESETS.filter((preset) => preset.ratio)) {
      const size = sizeOf(preset, model).join(" × ");
      const label = $(`[data-preset="${preset.name}"]`);
      say($("small", label), size);
      // A small model has few sizes: some shapes are then the same.
      label.hidden = sizes.has(size) && this.size !== preset.name;
      sizes.add(size);
    }
    this.showOwn();
    for (const side of ["width", "height"]) {
      this.field(side).step = model.row_unit_pixels;
      this.field(side).min = model.row_unit_pixels;
      this.field(side).placeholder = model.native[side];
    }
    this.field("steps").placeholder = model.steps;
    this.field("guidance").placeholder = model.guidance;
    const chosen = this.field("scheduler").value;
    this.field("scheduler").replaceChildren(
      el("option", { value: "" }, `${model.scheduler}, its own`),
      ...model.schedulers.map((name) => el("option", {}, name)));
    this.set("scheduler", chosen);
  }

  // The request, with nothing in it that is left to the coordinator.
  request() {
    const request = { ...this.further, prompt: this.field("prompt").value.trim() };
    for (const name of TEXTS.slice(1)) {
      const value = this.field(name).value.trim();
      if (value) request[name] = value;
    }
    for (const name of NUMBERS) {
      if (this.field(name).value !== "") request[name] = Number(this.field(name).value);
    }
    const warmup = this.field("warmup").value.trim();
    if (warmup) request.warmup = /^\d+$/.test(warmup) ? Number(warmup) : warmup;
    for (const name of CHECKS) if (this.field(name).checked) request[name] = true;
    return { ...request, ...this.pixels(), ...this.given.request(this.field("init.strength").value) };
  }

  pixels() {
    if (this.size === "custom") {
      const sides = ["width", "height"].filter((side) => this.field(side).value !== "");
      return Object.fromEntries(sides.map((side) => [side, Number(this.field(side).value)]));
    }
    const preset = PRESETS.find((preset) => preset.name === this.size);
    // With a picture its size is meant, if no other is chosen.
    if (preset.name === "own" || !this.model) return {};
    const [width, height] = sizeOf(preset, this.model);
    return { width, height };
  }

  // What keeps the request from being sent, found before the coordinator is asked.
  flaw() {
    if (!this.field("prompt").value.trim()) return ["prompt", "Say what the image shows."];
    if (!/^\d*$/.test(this.field("seed").value.trim())) return ["seed", "A seed is a whole number; leave it empty for a random one."];
    const number = [...NUMBERS, "width", "height", "init.strength"].find((name) => this.field(name).validity.badInput);
    if (number) return [number, "This is not a number."];
    if (!this.model && !["own", "custom"].includes(this.size)) {
      return ["width", "The model's size is known once a worker has joined. Choose a custom size, or the model's own."];
    }
    return this.given.flaw();
  }

  async submit() {
    this.clearAll();
    const flaw = this.flaw();
    if (flaw) return this.blame(...flaw);
    const request = this.request();
    const text = api.write(request);
    if (this.pending?.busy) return;
    if (this.pending?.text !== text) this.pending = { text, once: api.once() };
    this.busy(true);
    try {
      const job = await api.submit(request, this.pending.once);
      this.pending = null;
      const place = job.ahead ? `, ${count(job.ahead, "job")} before it` : "";
      this.answer(`Job ${job.id} is taken in${place}.`);
      this.submitted(job);
    } catch (error) {
      this.refused(error);
    } finally {
      this.busy(false);
    }
  }

  busy(isBusy) {
    if (this.pending) this.pending.busy = isBusy;
    $("#submit").setAttribute("aria-busy", String(isBusy));
  }

  refused(error) {
    if (error instanceof api.Away) {
      this.answer("The coordinator did not answer. Render again: if the job did arrive, it is not made twice.", true);
    } else if (error instanceof api.Refusal) {
      // Whatever is sent next is another try.
      this.pending = null;
      const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
      this.blame(error.param, `${sentence(error.message)}${wait}`);
    } else {
      throw error;
    }
  }

  // Says what is wrong next to the field that it is about, if there is one.
  blame(name, message) {
    // Of what is inside a field, as `loras[0].file`, that field is told.
    const places = name ? [name, name.split(/[.[]/)[0]] : [];
    name = places.find((place) => $(`#error-${CSS.escape(place)}`)) ?? name;
    const place = name && $(`#error-${CSS.escape(name)}`);
    const field = place && this.field(name);
    if (!field) return this.answer(name ? `${name}: ${message}` : message, true);
    const fold = field.closest("details");
    if (fold) fold.open = true;
    place.textContent = message;
    place.hidden = false;
    field.setAttribute("aria-invalid", "true");
    field.setAttribute("aria-describedby", [field.dataset.hint, `error-${name}`].filter(Boolean).join(" "));
    // A preset's size may be refused, too: then no field of it is there to be focused.
    if (field.offsetParent) field.focus();
    announce(message);
  }

  clear(name) {
    const place = $(`#error-${CSS.escape(name)}`);
    if (!place || place.hidden) return;
    place.hidden = true;
    place.textContent = "";
    this.field(name).removeAttribute("aria-invalid");
    if (this.field(name).dataset.hint) this.field(name).setAttribute("aria-describedby", this.field(name).dataset.hint);
    else this.field(name).removeAttribute("aria-describedby");
  }

  clearAll() {
    for (const place of $$(".error", this.form)) this.clear(place.id.slice("error-".length));
    this.answer("");
  }

  answer(text, isWrong = false) {
    const place = $("#answer");
    place.classList.toggle("wrong", isWrong);
    say(place, text);
  }

  // Takes a job's request and seed, so that the same image is one key away.
  fill(job) {
    const asked = job.request;
    const kept = { advanced: $("#advanced").open, profile: this.field("profile").checked };
    const values = { ...kept, deterministic: Boolean(asked.deterministic), seed: String(job.seed) };
    for (const name of ["prompt", "negative", "scheduler", "mode", "wire", ...NUMBERS]) values[name] = asked[name] ?? "";
    if (asked.cfg_split && asked.cfg_split !== "auto") values.cfg_split = asked.cfg_split;
    values["init.strength"] = asked.init?.strength ?? "";
    values.given = givenOf(asked);
    if (asked.warmup !== undefined && asked.warmup !== 4) values.warmup = asked.warmup;
    const isFurther = ([name, usual]) => asked[name] !== undefined && String(asked[name]) !== String(usual);
    values.further = Object.fromEntries(Object.entries(FURTHER).filter(isFurther).map(([name]) => [name, asked[name]]));
    if (Object.keys(values.further).length) values.advanced = true;
    const [width, height] = [asked.width ?? job.spec?.width, asked.height ?? job.spec?.height];
    values.size = this.presetOf(asked.width || asked.height ? [width, height] : null);
    if (values.size === "custom") Object.assign(values, { width, height });
    this.recall(values);
    this.clearAll();
    this.remember();
    this.answer(`Filled in from job ${job.id}, with its seed.`);
    this.form.scrollIntoView({ block: "start", behavior: "smooth" });
    this.field("prompt").focus({ preventScroll: true });
  }

  presetOf(size) {
    if (!size) return "own";
    const fits = (preset) => preset.ratio && String(sizeOf(preset, this.model)) === String(size);
    return (this.model && PRESETS.find(fits)?.name) || "custom";
  }
}
