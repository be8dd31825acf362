// The API key of a coordinator that wants one.

import * as api from "./api.js";
import { $ } from "./dom.js";

let answer = null;
// Whoever said "not now" is not asked again by what runs in the background.
let later = false;

function close(given) {
  const resolve = answer;
  answer = null;
  if ($("#key-dialog").open) $("#key-dialog").close();
  $("#locked").hidden = given;
  resolve?.(given);
}

function ask(wrong) {
  $("#key-why").textContent = wrong ? "The coordinator does not know this key. Is there another?" : "This coordinator lets in those who have a key.";
  $("#key").value = "";
  $("#key-button").hidden = false;
  if (later) {
    $("#locked").hidden = false;
    return Promise.resolve(false);
  }
  return new Promise((resolve) => {
    answer = resolve;
    $("#key-dialog").showModal();
  });
}

export function begin(retry) {
  $("#key-button").hidden = !api.key();
  api.onLocked(ask);
  $("#key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = $("#key").value.trim();
    if (!key) return;
    api.setKey(key);
    later = false;
    close(true);
    retry();
  });
  $("#key-dialog").addEventListener("close", () => {
    if (!answer) return;
    later = true;
    close(false);
  });
  for (const button of [$("#key-button"), $("#locked button")]) {
    button.addEventListener("click", () => {
      later = false;
      if (api.key()) api.setKey(null);
      $("#locked").hidden = true;
      retry();
    });
  }
}
