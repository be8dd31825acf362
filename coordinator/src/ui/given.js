// What an image is given beside its words: a picture to begin with, and LoRA files. They are sent as they are chosen.

import * as api from "./api.js";
import { $, announce, el, icon, reconcile, say } from "./dom.js";
import { bytes, sentence } from "./format.js";

// What a file is called, without its ending.
const bare = (name) => name.replace(/\.[^.]+$/, "");

export class Given {
  // `changed` hears of every change; `blame` says what is wrong at a field.
  constructor(changed, blame) {
    Object.assign(this, { changed, blame, picture: null, loras: [], sending: 0 });
    // Of what was recalled, only the last counts.
    this.turn = 0;
    this.choice("init", "picture", (file) => this.begin(file));
    this.choice("loras", "lora", (file) => this.add(file));
    $("#init-remove").addEventListener("click", () => {
      this.forget();
      $("#init-choose").focus();
      announce("The image begins with noise alone.");
    });
  }

  // A button that opens the browser's choice of files, which is hidden.
  choice(name, kind, take) {
    const input = $(`#${name}-file`);
    $(`#${name}-choose`).addEventListener("click", () => input.click());
    input.addEventListener("change", async () => {
      const file = input.files[0];
      input.value = "";
      if (!file) return;
      const sent = await this.send(name, kind, file);
      if (sent) take({ ...sent, name: file.name });
    });
  }

  async send(name, kind, file) {
    this.sending += 1;
    const button = $(`#${name}-choose`);
    button.setAttribute("aria-busy", "true");
    this.blame(name, "");
    announce(`${file.name} is sent.`);
    try {
      const sent = await api.send(file);
      if (sent.kind === kind) return sent;
      this.blame(name, sent.kind === "lora" ? "This is a LoRA file: add it below." : "This is a picture: choose it above.");
    } catch (error) {
      this.blame(name, sentence(error.message));
    } finally {
      this.sending -= 1;
      button.removeAttribute("aria-busy");
    }
    return null;
  }

  begin(picture) {
    this.picture = picture;
    this.show();
    announce(`The image begins with ${picture.name ?? "the picture"}.`);
  }

  forget() {
    this.picture = null;
    this.show();
  }

  add(lora) {
    const there = this.loras.find((other) => other.id === lora.id);
    if (!there) this.loras = [...this.loras, { scale: "1", ...lora }];
    this.show();
    announce(there ? `${lora.name} is there already.` : `${lora.name} is added.`);
  }

  show() {
    $("#init-shown").hidden = !this.picture;
    $("#init-choose").hidden = Boolean(this.picture);
    if (this.picture) {
      const image = $("#init-shown img");
      const source = api.picture(this.picture.id);
      if (image.getAttribute("src") !== source) image.src = source;
      image.alt = `The picture to begin with${this.picture.name ? `: ${this.picture.name}` : ""}`;
      $("#init-size").textContent = `${this.picture.width} × ${this.picture.height}`;
    }
    reconcile($("#loras-list"), this.loras, (lora) => `${this.turn}-${lora.id}`, (lora) => this.row(lora),
      (row, lora) => say($("small", row), lora.bytes ? bytes(lora.bytes) : ""));
    this.changed();
  }

  row(lora) {
    const scale = el("input", { type: "number", step: "0.1", min: "-100", max: "100", inputmode: "decimal", value: lora.scale, "aria-label": `Scale of ${lora.name}` });
    scale.addEventListener("input", () => {
      lora.scale = scale.value;
      this.changed();
    });
    const remove = el("button", { type: "button", class: "quiet square", "aria-label": `Remove ${lora.name}`, title: "Remove" }, icon("close"));
    remove.addEventListener("click", () => {
      this.loras = this.loras.filter((other) => other !== lora);
      this.show();
      $("#loras-choose").focus();
      announce(`${lora.name} is removed.`);
    });
    return el("li", {}, el("span", { title: lora.name }, el("b", {}, bare(lora.name)), el("small", {})), scale, remove);
  }

  // What is said of it in a request.
  request(strength) {
    const said = {};
    if (this.picture) said.init = { file: this.picture.id, ...(strength === "" ? {} : { strength: Number(strength) }) };
    if (this.loras.length) {
      said.loras = this.loras.map(({ id, name, scale }) => ({ file: id, name, ...(scale === "" ? {} : { scale: Number(scale) }) }));
    }
    return said;
  }

  flaw() {
    if (this.sending) return ["loras", "A file is still on its way: wait for it, or load the page again."];
    return null;
  }

  // What the browser remembers.
  memory() {
    return { picture: this.picture, loras: this.loras };
  }

  // Takes what is remembered, or was asked for by a job, if the coordinator has it still.
  async recall({ picture, loras } = {}) {
    this.turn += 1;
    const turn = this.turn;
    this.picture = picture ?? null;
    this.loras = (loras ?? []).map((lora) => ({ ...lora }));
    this.show();
    const recalled = this.loras;
    const [begun, ...added] = await Promise.all([this.look(picture), ...recalled.map((lora) => this.look(lora))]);
    if (turn !== this.turn) return;
    // What was chosen or removed meanwhile stays so.
    if (this.picture === picture) this.picture = begun;
    const lost = recalled.filter((lora, at) => !(added[at] && Object.assign(lora, { bytes: added[at].bytes })));
    this.loras = this.loras.filter((lora) => !lost.includes(lora));
    this.show();
    if (picture && !begun) this.blame("init", "The picture is not kept any more: choose it again.");
    if (lost.length) this.blame("loras", `Not kept any more, to be added again: ${lost.map(({ name }) => name).join(", ")}.`);
  }

  // What is known of a file; what was remembered, if nobody can say; null, if it is gone.
  async look(file) {
    if (!file) return null;
    try {
      return { ...file, ...(await api.file(file.id)) };
    } catch (error) {
      return error.status === 404 ? null : file;
    }
  }
}

// What a job was given, as `recall` takes it.
export function givenOf({ init, loras }) {
  const picture = init?.file ? { id: init.file } : null;
  return { picture, loras: (loras ?? []).map(({ file, name, scale }) => ({ id: file, name: name ?? file, scale: String(scale) })) };
}
