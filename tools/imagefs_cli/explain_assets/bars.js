/**
 * Paints what happened in one row of one start, as pixels.
 *
 * Each painter takes a view and a box (device pixels: left, top, bottom) whose width in columns is that of the `Bars`. What is kept from
 * one call to the next are sums of lists, which never change.
 */

import { Coverage } from "./coverage.js";
import { KINDS, TIERS } from "./data.js";
import { transferOf } from "./lanes.js";
import { HEIGHTS } from "./rows.js";
import { PHASES, STAGES, phaseOf, stageEnd } from "./waits.js";

/** Events of one row that are worth adding up, and in how many bins. */
const FAR_FROM = 4000;
const FAR_BINS = 8192;
const NATIVELY = 1;
const binned = new WeakMap(); // by list of events

export class Bars {
  constructor(surface, palette, columns) {
    this.surface = surface;
    this.palette = palette;
    this.columns = columns;
    this.byTier = new Coverage(columns, TIERS.length);
    this.byPhase = new Coverage(columns, PHASES.length);
    this.byKind = new Coverage(columns, KINDS.length);
    this.opened = new Uint8Array(columns);
  }

  /** Pixels of the screen as so many of the device. */
  #px(size) {
    return Math.max(1, Math.round(size * this.surface.ratio));
  }

  /** A group: how many waited, on the average of each column, and when files were opened. */
  group(start, events, colour, view, { left, top, bottom }) {
    const strip = bottom - this.#px(4);
    this.waits(start.spans, events.reads, events.peak, colour, view, { left, top: top + this.#px(3), bottom: strip });
    this.#openMarks(start, events.opens, view, left, strip + 1, bottom - 1);
  }

  /** The critical path: its waits; between them the program went on. */
  path({ path }, colour, view, { left, top, bottom }) {
    const [y0, y1] = [top + this.#px(7), bottom - this.#px(7)];
    this.surface.fill(left, (y0 + y1) >> 1, left + this.columns, ((y0 + y1) >> 1) + this.#px(1), this.palette.pixel.grid);
    path.list ??= new Int32Array(path.count).map((_, i) => i);
    this.waits(path, path.list, 1, colour, view, { left, top: y0, bottom: y1 });
  }

  /** How many waited, of at most `peak`: those of `spans` that are in `list`, stacked by tier, or by what they waited for. */
  waits(spans, list, peak, colour, view, box) {
    const { pixel } = this.palette;
    const isTier = colour === "tier";
    const coverage = isTier ? this.byTier : this.byPhase;
    coverage.clear();
    if (isFar(list, view, this.columns)) {
      addBins(coverage, binsOf(spans, list, isTier, view.end), view);
    } else {
      addWaits(coverage, spans, list, isTier, view);
    }
    const names = isTier ? TIERS : [...PHASES].reverse();
    this.#stack(coverage, names.map((name) => pixel[name]), Math.max(peak, 1), box);
  }

  /** Columns of several colours, the last category at the bottom. What is too short to be seen is a pixel high. */
  #stack(coverage, colors, most, { left, top, bottom }) {
    const values = coverage.finish();
    const { columns, seen } = coverage;
    const height = bottom - top;
    const thin = bottom - this.#px(1);
    for (let x = 0; x < columns; x++) {
      if (!seen[x]) continue;
      let level = 0;
      let y = bottom;
      for (let category = coverage.categories - 1; category >= 0; category--) {
        level += values[category * columns + x];
        const next = bottom - Math.min(Math.round((level * height) / most), height);
        if (next < y) this.surface.column(left + x, next, y, colors[category]);
        y = next;
      }
      if (y > thin) this.surface.column(left + x, thin, bottom, colors[seen[x] - 1]);
    }
  }

  /** One mark a column for opens; those that the kernel served alone are told apart by colour and by being shorter. */
  #openMarks(start, list, view, left, top, bottom) {
    const { pixel } = this.palette;
    const half = (top + bottom) >> 1;
    const width = this.#px(1);
    const opened = this.opened.fill(0);
    const factor = this.columns / view.span;
    if (isFar(list, view, this.columns)) addOpenBins(opened, openBinsOf(start, list, view.end), view);
    else addOpens(opened, start, list, view.from, factor);
    for (let x = 0; x < this.columns; x++) {
      if (!opened[x]) continue;
      const isNative = opened[x] === NATIVELY;
      for (let w = 0; w < width && x + w < this.columns; w++) {
        this.surface.column(left + x + w, isNative ? half : top, bottom, isNative ? pixel.native : pixel.faint);
      }
    }
  }

  /** A file: a bar a read, as long as it waited. */
  file(start, { reads, opens }, colour, view, { left, top, bottom }) {
    const { pixel } = this.palette;
    const { columns } = this;
    const { spans } = start;
    const factor = columns / view.span;
    const narrowest = this.#px(2);
    const [y0, y1] = [top + this.#px(4), bottom - this.#px(4)];
    this.#openMarks(start, opens, view, left, bottom - this.#px(6), bottom - this.#px(1));
    let covered = -1;
    let coveredColor = 0;
    for (let at = earliest(reads, spans.begin, view.from - spans.longest); at < reads.length; at++) {
      const read = reads[at];
      const begin = (spans.begin[read] - view.from) * factor;
      const end = (spans.end[read] - view.from) * factor;
      if (begin >= columns) break;
      if (end < 0) continue;
      const x0 = Math.max(0, Math.round(begin));
      const x1 = Math.min(columns, Math.max(Math.round(end), x0 + narrowest));
      if (colour === "tier" || end - begin < narrowest) {
        const color = pixel[colour === "tier" ? TIERS[spans.tier[read]] : longestPhase(spans, read)];
        if (x1 <= covered && color === coveredColor) continue;
        this.surface.fill(left + x0, y0, left + x1, y1, color);
        [covered, coveredColor] = [x1, color];
        continue;
      }
      let x = x0;
      for (let stage = 0; stage < STAGES; stage++) {
        const next = Math.min(columns, Math.max(x, Math.round((stageEnd(spans, read, stage) - view.from) * factor)));
        this.surface.fill(left + x, y0, left + next, y1, pixel[PHASES[phaseOf(spans, read, stage)]]);
        x = next;
      }
    }
  }

  /** The link: bytes a second as they came, stacked by why they were asked for. GETs that `mask` has as 0 are left out. */
  link({ gets }, mask, peak, view, { left, top, bottom }) {
    const { pixel } = this.palette;
    const factor = this.columns / view.span;
    this.byKind.clear();
    for (let get = 0; get < gets.count; get++) {
      if ((mask && !mask[get]) || !gets.isHere[get]) continue;
      const [from, to] = transferOf(gets, get);
      const rate = (gets.end[get] - gets.start[get]) / (to - from);
      this.byKind.add(gets.kind[get], (from - view.from) * factor, (to - view.from) * factor, rate);
    }
    const box = { left, top: top + this.#px(4), bottom: bottom - this.#px(2) };
    this.#stack(this.byKind, KINDS.map((kind) => pixel[kind]), peak || 1, box);
  }

  /** GETs on their lanes: a line in the queue, half height until the first byte, full while bytes come, half again while it is decoded. */
  gets({ gets }, { lane, kinds }, kind, mask, view, { left, top }) {
    const { palette, columns } = this;
    const { ratio } = this.surface;
    const factor = columns / view.span;
    const name = KINDS[kind];
    const full = this.#px(HEIGHTS.lane - 1);
    const half = Math.max(1, Math.round(full / 2));
    const line = this.#px(1);
    const at = (time) => Math.min(columns, Math.max(0, Math.round((time - view.from) * factor)));
    const covered = new Int32Array(kinds[kind].lanes).fill(-1);
    for (const get of kinds[kind].list) {
      if (gets.decoded[get] < view.from || gets.queued[get] > view.to) continue;
      // On a lane one GET follows the other: one that ends in the column where the last one ended would hide it, and look the same.
      const end = at(gets.decoded[get]);
      if (end <= covered[lane[get]]) continue;
      covered[lane[get]] = end;
      const y = top + Math.round((lane[get] * HEIGHTS.lane + 4) * ratio);
      const bar = (x0, x1, height, color) => {
        const above = (full - height) >> 1;
        this.surface.fill(left + x0, y + above, left + Math.min(x1, columns), y + above + height, color);
      };
      const [sent, first, arrived] = [at(gets.sent[get]), at(gets.first[get]), at(gets.arrived[get])];
      const isDim = mask && !mask[get];
      bar(at(gets.queued[get]), sent, line, palette.pixel.faint);
      bar(sent, first, half, isDim ? palette.dim[name] : palette.pale[name]);
      bar(arrived, end, half, isDim ? palette.dim.faint : palette.pixel.faint);
      bar(first, Math.max(arrived, first + line), full, isDim ? palette.dim[name] : palette.pixel[name]);
    }
  }
}

/** Add waits in a view, one by one. */
function addWaits(coverage, spans, list, isTier, view) {
  const factor = coverage.columns / view.span;
  for (let at = earliest(list, spans.begin, view.from - spans.longest); at < list.length; at++) {
    const i = list[at];
    let begin = (spans.begin[i] - view.from) * factor;
    if (begin >= coverage.columns) break;
    const until = (spans.end[i] - view.from) * factor;
    if (until < 0) continue;
    if (isTier) {
      coverage.add(spans.tier[i], begin, until);
      continue;
    }
    for (let stage = 0; stage < STAGES; stage++) {
      const end = (stageEnd(spans, i, stage) - view.from) * factor;
      if (end > begin) coverage.add(PHASES.length - 1 - phaseOf(spans, i, stage), begin, end);
      begin = Math.max(begin, end);
    }
  }
}

/** Mark the columns in which files were opened: 1 by the kernel alone, 2 also otherwise. */
function addOpens(opened, { opens }, list, from, factor) {
  for (let at = earliest(list, opens.t, from); at < list.length; at++) {
    const x = Math.floor((opens.t[list[at]] - from) * factor);
    if (x >= opened.length) break;
    const how = opens.native[list[at]] ? NATIVELY : 2;
    if (how > opened[x]) opened[x] = how;
  }
}

/*
 * Many events seen from afar are added up once, in bins much narrower than a column, and only those are added in each frame: so a frame
 * costs no more for more events.
 */
function isFar(list, view, columns) {
  return list.length > FAR_FROM && view.span / columns > (2 * view.end) / FAR_BINS;
}

function kept(list, name, make) {
  let sums = binned.get(list);
  if (!sums) binned.set(list, (sums = {}));
  sums[name] ??= make();
  return sums[name];
}

function binsOf(spans, list, isTier, end) {
  return kept(list, isTier ? "tier" : "phase", () => {
    const bins = new Coverage(FAR_BINS, isTier ? TIERS.length : PHASES.length);
    addWaits(bins, spans, list, isTier, { from: 0, span: end });
    return { values: bins.finish(), categories: bins.categories, width: end / FAR_BINS };
  });
}

function openBinsOf(start, list, end) {
  return kept(list, "opens", () => {
    const opened = new Uint8Array(FAR_BINS);
    addOpens(opened, start, list, 0, FAR_BINS / end);
    return { opened, width: end / FAR_BINS };
  });
}

function addOpenBins(columns, { opened, width }, view) {
  const factor = columns.length / view.span;
  for (let bin = Math.max(0, Math.ceil(view.from / width)); bin < FAR_BINS; bin++) {
    const x = Math.floor((bin * width - view.from) * factor);
    if (x >= columns.length) break;
    if (opened[bin] > columns[x]) columns[x] = opened[bin];
  }
}

function addBins(coverage, { values, categories, width }, view) {
  const factor = coverage.columns / view.span;
  const first = Math.max(0, Math.floor(view.from / width));
  const last = Math.min(FAR_BINS, Math.ceil((view.from + view.span) / width));
  for (let category = 0; category < categories; category++) {
    for (let bin = first; bin < last; bin++) {
      const value = values[category * FAR_BINS + bin];
      if (value > 0) coverage.add(category, (bin * width - view.from) * factor, ((bin + 1) * width - view.from) * factor, value);
    }
  }
}

function longestPhase(spans, i) {
  let most = -1;
  let name = "";
  let at = spans.begin[i];
  for (let stage = 0; stage < STAGES; stage++) {
    const end = stageEnd(spans, i, stage);
    if (end - at > most) [most, name] = [end - at, PHASES[phaseOf(spans, i, stage)]];
    at = end;
  }
  return name;
}

/** The place in a list of events in order of time of the first one at or after `time`. */
function earliest(list, times, time) {
  let low = 0;
  let high = list.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (times[list[middle]] < time) low = middle + 1;
    else high = middle;
  }
  return low;
}

