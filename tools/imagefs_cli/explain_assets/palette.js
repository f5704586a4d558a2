/** The colours of the page's style, as the canvas needs them: by name, as CSS text and as pixels. */

import { KINDS, TIERS } from "./data.js";
import { PHASES } from "./waits.js";

const OTHERS = ["back", "panel", "stripe", "hover", "chosen", "grid", "beyond", "text", "faint", "accent", "better", "worse", "native"];

/** What a colour's name is in the style; `variable("store")`. */
export const variable = (name) => `var(--${name})`;

export class Palette {
  /** `probe` is an element whose colour may be set: a browser resolves what a variable means in this theme only where it is used. */
  constructor(probe) {
    this.probe = probe;
    this.read();
  }

  /** Read all colours anew, after the theme has changed. */
  read() {
    this.css = {};
    this.pixel = {};
    for (const name of [...TIERS, ...PHASES, ...KINDS, ...OTHERS]) {
      this.probe.style.color = variable(name);
      this.css[name] = getComputedStyle(this.probe).color;
      this.pixel[name] = pixel(this.css[name].match(/[\d.]+/g).slice(0, 3).map(Number));
    }
    // What a search does not find, and what only prepares: the same hue, nearer to the background.
    this.pale = Object.fromEntries(Object.entries(this.pixel).map(([name, value]) => [name, mix(value, this.pixel.back, 0.6)]));
    this.dim = Object.fromEntries(Object.entries(this.pixel).map(([name, value]) => [name, mix(value, this.pixel.back, 0.85)]));
  }
}

/** As `ImageData` has it on the little-endian machines that there are. */
function pixel([red, green, blue]) {
  return (0xff000000 | (blue << 16) | (green << 8) | red) >>> 0;
}

function mix(value, other, part) {
  let mixed = 0xff;
  for (let shift = 16; shift >= 0; shift -= 8) {
    const channel = ((value >>> shift) & 0xff) * (1 - part) + ((other >>> shift) & 0xff) * part;
    mixed = mixed * 256 + Math.round(channel);
  }
  return mixed;
}
