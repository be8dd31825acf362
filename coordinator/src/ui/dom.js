// The few things that this page needs of a document.

export const $ = (selector, root = document) => root.querySelector(selector);
export const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

// An element. Of its attributes `on` holds listeners; true and false are for those without a value.
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

// Sets text only where it differs: what assistive software reads out is not read out again.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Makes `parent` hold an element for each item, in order. Elements stay those of their items, so that focus,
// hover and loaded images outlive an update.
export function reconcile(parent, items, key, create, update) {
  const there = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let at = parent.firstElementChild;
  for (const item of items) {
    const name = String(key(item));
    let child = there.get(name);
    there.delete(name);
    if (!child) {
      child = create(item);
      child.dataset.key = name;
    }
    update?.(child, item);
    if (child === at) at = at.nextElementSibling;
    else parent.insertBefore(child, at);
  }
  for (const child of there.values()) child.remove();
}

let copied;

// Copies what `source` shows. Browsers have a clipboard only where the page is trusted, which plain HTTP on a
// network is not; a selection can be copied anywhere.
export async function copy(source, button) {
  try {
    await navigator.clipboard.writeText(source.textContent);
  } catch {
    const range = document.createRange();
    range.selectNodeContents(source);
    const selection = getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    document.execCommand("copy");
  }
  clearTimeout(copied);
  button.dataset.done = "";
  say(button.querySelector("span"), "Copied");
  copied = setTimeout(() => {
    delete button.dataset.done;
    say(button.querySelector("span"), "Copy");
  }, 1600);
}

let telling;

// Says for a while what went wrong where there is no better place for it.
export function tell(text) {
  const place = $("#told");
  say(place, text);
  place.hidden = false;
  clearTimeout(telling);
  telling = setTimeout(() => (place.hidden = true), 7000);
}

// Tells those who hear the page rather than see it.
export function announce(text) {
  say($("#announce"), text);
}
