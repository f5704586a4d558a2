/** Making elements. Text only ever becomes text: nothing in the page is parsed as HTML after the page itself. */

import { variable } from "./palette.js";

export const byId = (id) => document.getElementById(id);

/** `element("td", {class: "number"}, "12")`: attributes, then elements or text; what is null or false is left out. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== false));
  return made;
}

/** A small square in a colour of the style. */
export function swatch(color) {
  const made = element("i", { class: "swatch", "aria-hidden": "true" });
  made.style.background = variable(color);
  return made;
}

/** An entry of a legend: what a colour stands for, and what that comes to. */
export function named(color, label, text) {
  return element("li", {}, swatch(color), `${label} `, element("b", {}, text));
}

/**
 * A bar of parts `{color, label, value, text}`, as long as its sum is of `whole`, for eyes; a sentence says the same for screen readers.
 */
export function bar(parts, whole) {
  const said = parts.filter(({ value }) => value > 0).map(({ label, text }) => `${label} ${text}`);
  const made = element("div", { class: "bar", role: "img", "aria-label": said.join(", ") || "nothing" });
  for (const { color, label, value, text } of parts) {
    if (!(value > 0)) continue;
    const part = element("i", { title: `${label}: ${text}` });
    part.style.background = variable(color);
    part.style.width = `${(100 * value) / whole}%`;
    made.append(part);
  }
  return made;
}
