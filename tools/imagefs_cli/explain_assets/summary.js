/** The head of the page: which start this is, one sentence, and what it comes to. Made once; nothing in it changes. */

import { TIERS } from "./data.js";
import { bar, byId, element, named } from "./dom.js";
import { bytes, count, difference, duration, many, share, shown } from "./units.js";
import { HELP, PHASES } from "./waits.js";

export const TIER_NAMES = { tree: "tree", ram: "RAM", ssd: "SSD", store: "store" };
export const PHASE_NAMES = {
  queue: "queue",
  first: "first byte",
  transfer: "transfer",
  decode: "decode",
  verify: "verify",
  disk: "disk",
  daemon: "daemon",
};
export const KIND_NAMES = { demand: "waited for", profile: "profile", along: "along", ahead: "read ahead" };

export function showSummary(starts) {
  const title = starts.map(({ head }) => nameOf(head)).join(" and ");
  document.title = `${title} – imagefs explain`;
  byId("title").replaceChildren(...starts.map((start) => identity(start, starts.length > 1)));
  const sentences = starts.filter(({ head }) => head.sentence);
  byId("sentence").replaceChildren(
    ...sentences.map(({ name, head }) => element("p", {}, starts.length > 1 && element("b", {}, `${name}  `), shown(head.sentence))),
  );
  const tiles = [length, reads, moved, profile].map((tile) => tile(starts));
  const figures = starts.length > 1 ? [sideBySide(starts, tiles)] : tiles.map(asTile);
  byId("summary").replaceChildren(figures[0], phases(starts), tiers(starts), ...figures.slice(1));
  const notes = starts.flatMap((start) => notesOf(start).map((note) => (starts.length > 1 ? `${start.name}: ${note}` : note)));
  byId("notes").replaceChildren(...notes.map((note) => element("p", {}, note)));
}

export function nameOf(head) {
  return shown(head.ref || (head.manifest ?? "").slice(0, 12) || "start");
}

function identity({ name, head }, isCompared) {
  const began = head.began ? new Date(head.began * 1000).toISOString().replace("T", " ").slice(0, 19) : "";
  const facts = [
    shown((head.entry ?? []).join(" ")),
    head.mode ? `${head.mode} mode` : "",
    head.label ? `label ${shown(head.label)}` : "",
    head.gpu ? shown(head.gpu) : "",
    began ? `${began} UTC` : "",
    (head.manifest ?? "").slice(0, 12),
  ].filter(Boolean);
  return element(
    "div",
    { class: "identity" },
    isCompared && element("b", { class: "which" }, name),
    element("span", { class: "ref" }, nameOf(head)),
    element("span", { class: "facts", title: facts.join(" · ") }, facts.join(" · ")),
  );
}

/** Figures of each start, `[figure, in a few words what it means, the rest, told on hover]`: a tile if there is one start. */
function asTile({ title, figures: [[figure, detail, more]] }) {
  return element(
    "section",
    { class: "tile", title: more },
    element("h2", {}, title),
    element("p", { class: "figure" }, figure),
    element("p", { class: "detail" }, detail),
  );
}

/** And a row of a table if there are two. */
function sideBySide(starts, tiles) {
  const rows = tiles.map(({ title, figures }) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, title),
      ...figures.map(([figure, detail, more]) =>
        element("td", { title: more }, element("b", {}, figure), element("span", { class: "detail" }, ` ${detail}`)),
      ),
    ),
  );
  const head = starts.map(({ name }) => element("th", { scope: "col", class: "which" }, name));
  const table = element("table", {}, element("tr", {}, element("td", {}), ...head), ...rows);
  return element("section", { class: "tile sides" }, table);
}

function length(starts) {
  const ended = { quiet: "then quiet", limit: "to the time limit", unmounted: "then unmounted", running: "so far" };
  const figures = starts.map(({ length, begun, head }, which) => [
    duration(length),
    which ? `A − B ${difference(starts[0].length - length)}` : (ended[head.ended] ?? ""),
    `From the first access to the last; the first came ${duration(begun)} after the mount`,
  ]);
  return { title: "Length", figures };
}

/** Bars of several starts, on one scale, with what each colour is and comes to. */
function bars(title, starts, names, valuesOf, text) {
  const whole = Math.max(1e-9, ...starts.map((start) => valuesOf(start).reduce((sum, value) => sum + value, 0)));
  const parts = starts.map((start) =>
    valuesOf(start).map((value, at) => ({ color: Object.keys(names)[at], label: Object.values(names)[at], value, text: text(value) })),
  );
  const legend = Object.entries(names)
    .map(([color, label], at) => [color, label, parts.map((one) => one[at])])
    .filter(([, , ones]) => ones.some(({ value }) => value > 0))
    .map(([color, label, ones]) => named(color, label, ones.map((one) => one.text).join(" | ")));
  return element(
    "section",
    { class: "tile wide" },
    element("h2", {}, title),
    ...parts.map((one, which) =>
      element("div", { class: "barline" }, starts.length > 1 && element("b", { class: "which" }, starts[which].name), bar(one, whole)),
    ),
    element("ul", { class: "legend" }, ...legend),
  );
}

/**
 * What the length consists of, if the critical path is known; if not, what all reads waited for, which is more than the length if several
 * waited at once.
 */
function phases(starts) {
  const isPath = starts.every(({ path }) => path);
  const names = isPath ? { program: "program", ...PHASE_NAMES } : PHASE_NAMES;
  const values = ({ sums }) => (isPath ? [sums.program, ...sums.phases] : sums.phases);
  return bars(isPath ? "What the length consists of" : "What reads waited for, all together", starts, names, values, duration);
}

function tiers(starts) {
  const order = [...TIERS].reverse();
  const names = Object.fromEntries(order.map((tier) => [tier, TIER_NAMES[tier]]));
  return bars("Bytes read, by tier", starts, names, ({ sums }) => [...sums.tiers].reverse(), bytes);
}

function reads(starts) {
  const figures = starts.map(({ sums, reads, opens }) => {
    const native = opens.native.reduce((sum, one) => sum + one, 0);
    return [
      count(reads.count),
      `${count(sums.store)} from the store`,
      `${duration(sums.wait)} of waits, all together; ${many(opens.count, "open")}, of which the kernel served ${count(native)} alone`,
    ];
  });
  return { title: "Reads", figures };
}

function moved(starts) {
  const figures = starts.map(({ sums, gets }) => [
    sums.fetched ? share(sums.used, sums.fetched) : "–",
    `of ${bytes(sums.fetched)}`,
    `${bytes(sums.touched)} touched; ${bytes(sums.fetched)} of content fetched: ${bytes(sums.moved)} in ${many(gets.count, "GET")}, ` +
      `${count(sums.retried)} of them more than once`,
  ]);
  return { title: "Used of fetched", figures };
}

function profile(starts) {
  const figures = starts.map(({ head, sums }) => {
    const helped = HELP.map((name, at) => [name, sums.help[at]]).filter(([, number]) => number);
    const used = head.stats?.prefetch_bytes ? share(head.stats.prefetch_used_bytes, head.stats.prefetch_bytes) : "";
    return [
      head.profile ? many(head.profile.starts, "start") : "none",
      used ? `prefetch ${used} used` : "",
      `Reads: ${helped.map(([name, number]) => `${name} ${count(number)}`).join(", ")}`,
    ];
  });
  return { title: "Profile", figures };
}

function notesOf({ head }) {
  const notes = [];
  const lost = Object.entries(head.lost ?? {}).filter(([, number]) => number > 0);
  if (lost.length) {
    const told = lost.map(([what, number]) => `${count(number)} ${what}`).join(", ");
    notes.push(`Not all is shown: ${told} came after the bound and were not kept.`);
  }
  if (head.watched === false) notes.push("Opens could not be watched here: what the kernel served alone is not seen.");
  if (head.ended === "running") notes.push("This start was still going on when the page was written.");
  return notes;
}

