/**
 * What people read: durations, sizes, shares, and names that others chose. Times are in microseconds everywhere in the page.
 *
 * Nothing here knows a document or the DOM.
 */

const STEPS = [1, 2, 5];
const NUMBERS = new Intl.NumberFormat("en");

/** `820 µs`, `12.3 ms`, `2.41 s`: three digits, as many as anybody compares. */
export function duration(us) {
  const size = Math.abs(us);
  if (size < 999.5) return `${Math.round(us)} µs`;
  if (size < 999500) return `${digits(us / 1000)} ms`;
  if (size < 600e6) return `${digits(us / 1e6)} s`;
  return `${digits(us / 60e6)} min`;
}

/** A difference of durations, always with its sign. */
export function difference(us) {
  if (Math.abs(us) < 0.5) return "±0";
  return (us > 0 ? "+" : "−") + duration(Math.abs(us));
}

/** `1.30 GB`: decimal, as the command line says sizes. */
export function bytes(count) {
  let value = count;
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (Math.abs(value) < 999.5) return `${unit === "B" ? Math.round(value) : digits(value)} ${unit}`;
    value /= 1000;
  }
  return `${digits(value)} TB`;
}

export function count(value) {
  return NUMBERS.format(value);
}

/** `3 files`, `1 file`. */
export function many(value, one, several = `${one}s`) {
  return `${count(value)} ${value === 1 ? one : several}`;
}

/** `49 %`; a part of nothing is nothing. */
export function share(part, whole) {
  if (!whole) return "0 %";
  const percent = (100 * part) / whole;
  return `${percent > 0 && percent < 9.95 ? percent.toFixed(1) : Math.round(percent)} %`;
}

function digits(value) {
  const size = Math.abs(value);
  return value.toFixed(size < 9.995 ? 2 : size < 99.95 ? 1 : 0);
}

/** Round times for an axis: those in [from, to] that lie at least `apart` from each other. */
export function ticks(from, to, apart) {
  const power = 10 ** Math.floor(Math.log10(Math.max(apart, 1)));
  const step = (STEPS.find((factor) => factor * power >= apart) ?? 10) * power;
  const found = [];
  for (let at = Math.ceil(from / step) * step; at <= to; at += step) found.push(at);
  return { step, found };
}

/** A time on an axis whose ticks are `step` apart: all in one unit, with the digits that tell them apart. */
export function tickLabel(at, step) {
  if (step >= 1e6) return `${at / 1e6} s`;
  if (step >= 1e3) return at >= 1e6 ? `${(at / 1e6).toFixed(step >= 1e5 ? 1 : step >= 1e4 ? 2 : 3)} s` : `${at / 1e3} ms`;
  return at >= 1e6 ? `${(at / 1e6).toFixed(6)} s` : `${(at / 1e3).toFixed(3)} ms`;
}

/**
 * A name as it can be shown: what is invisible, what turns the direction of writing, and bytes that are no UTF-8 (which Python carries as
 * lone surrogates) appear as escapes, so that two names never look the same and none looks like what it is not.
 */
export function shown(name) {
  return name.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, (char) => {
    const code = char.codePointAt(0);
    const byte = code >= 0xdc80 && code <= 0xdcff ? code - 0xdc00 : code;
    return byte < 0x100 ? `\\x${byte.toString(16).padStart(2, "0")}` : `\\u{${code.toString(16)}}`;
  });
}
