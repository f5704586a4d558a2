/**
 * Paints the chart: an axis, and for each row in sight its label, a pane a start, and what two starts differ by.
 *
 * Reads what it is given and changes nothing. A frame costs one pass over the events in sight of the rows in sight, and the pixels: there
 * is no element and no object an event.
 */

import { Bars } from "./bars.js";
import { HEIGHTS, KIND_LABELS, rowAt } from "./rows.js";
import { Surface } from "./surface.js";
import { bytes, count, difference, duration, many, tickLabel, ticks } from "./units.js";

const FONT = '12px system-ui, "Segoe UI", "DejaVu Sans", sans-serif';
const SMALL = '11px system-ui, "Segoe UI", "DejaVu Sans", sans-serif';
const BOLD = `600 ${FONT}`;
const INDENT = 14;
const PANE_GAP = 10;
const ENDPAD = 6;
/** Of more bars than these in a file's row, none says how long it was. */
const TOLD_MAX = 40;
/** µs; a smaller difference is chance. */
const LITTLE = 1000;

export class Chart {
  constructor(canvas, palette) {
    this.surface = new Surface(canvas);
    this.palette = palette;
    this.fitted = new Map();
  }

  /** Take the size of what is in sight (CSS pixels) for so many starts; everything else follows from it. */
  resize(width, height, starts) {
    this.surface.resize(width, height, window.devicePixelRatio || 1);
    this.width = width;
    this.height = height;
    this.axis = starts > 1 ? 40 : 24;
    this.gutter = Math.round(Math.min(360, Math.max(170, width * 0.24)));
    this.extra = starts > 1 ? 150 : 0;
    const each = Math.max(40, (width - this.gutter - this.extra - ENDPAD - PANE_GAP * (starts - 1)) / starts);
    this.panes = Array.from({ length: starts }, (_, which) => {
      const left = this.gutter + which * (each + PANE_GAP);
      return { left, right: left + each };
    });
    this.bars = new Bars(this.surface, this.palette, Math.round(each * this.surface.ratio));
    this.fitted.clear();
  }

  /** Which pane a place is in, -1 if none, and the time there: that of the view. */
  at(x, view) {
    const which = this.panes.findIndex(({ left, right }) => x >= left && x < right);
    const { left, right } = this.panes[Math.max(which, 0)];
    return { which, time: view.from + ((x - left) / (right - left)) * view.span };
  }

  /** Where a time of a start is in its pane. */
  place(time, which, { starts, view }) {
    const { left, right } = this.panes[which];
    return left + ((time - starts[which].begun - view.from) / view.span) * (right - left);
  }

  /** µs that one pixel stands for. */
  scale(view) {
    return view.span / (this.panes[0].right - this.panes[0].left);
  }

  /** Paint what an `App` shows; `scrolled`: pixels of rows above the first in sight. */
  draw(model, scrolled) {
    const { surface, palette } = this;
    this.model = model;
    this.ratio = surface.ratio;
    const { rows } = model.layout;
    const first = Math.max(0, rowAt(model.layout, scrolled));
    const seen = [];
    for (let at = first; at < rows.length && rows[at].top < scrolled + this.height - this.axis; at++) {
      seen.push({ row: rows[at], number: at, top: rows[at].top - scrolled + this.axis });
    }
    surface.clear(palette.pixel.back);
    this.#ground(seen);
    for (const { row, top } of seen) {
      for (let which = 0; which < model.starts.length; which++) this.#row(row, which, Math.round(top * this.ratio));
    }
    surface.show();
    for (const { row, top, number } of seen) this.#label(row, top, number);
    this.#outline(seen);
    this.#head();
  }

  // -- pixels ----------------------------------------------------------------------------------------------------------------------------

  #ground(seen) {
    const { surface, palette, ratio, model } = this;
    for (const { row, number, top } of seen) {
      const color = number === model.cursor ? "chosen" : number === model.hover ? "hover" : row.type === "group" ? "stripe" : "back";
      if (color === "back") continue;
      surface.fill(0, Math.round(top * ratio), surface.width, Math.round((top + row.height) * ratio), palette.pixel[color]);
    }
    this.panes.forEach(({ left, right }, which) => {
      const start = model.starts[which];
      const x = (time) => Math.round(Math.min(Math.max(this.place(time, which, model), left), right) * ratio);
      const beyond = (x0, x1) => surface.fill(x0, 0, x1, surface.height, palette.pixel.beyond);
      beyond(x(-Infinity), x(start.begun));
      beyond(x(start.ended), x(Infinity));
      for (const at of this.#ticks(start).found) surface.fill(x(at), 0, x(at) + 1, surface.height, palette.pixel.grid);
    });
  }

  /** Round times of a start, since its own mount. */
  #ticks(start) {
    const { from, to } = this.model.view.of(start);
    return ticks(Math.max(from, 0), to, this.scale(this.model.view) * 90);
  }

  #row(row, which, top) {
    const { model, bars } = this;
    const { colour } = model;
    const start = model.starts[which];
    const view = model.view.of(start);
    const box = { left: Math.round(this.panes[which].left * this.ratio), top, bottom: top + Math.round(row.height * this.ratio) };
    const mask = model.mask?.[which].gets;
    if (row.type === "path") {
      if (start.path) bars.path(start, colour, view, box);
    } else if (row.type === "link") {
      bars.link(start, mask, Math.max(...model.lanes.map(({ peak }) => peak)), view, box);
    } else if (row.type === "kind") {
      bars.gets(start, model.lanes[which], row.kind, mask, view, box);
    } else if (row.type === "group") {
      bars.group(start, model.forest.events(row.node, which), colour, view, box);
    } else {
      bars.file(start, model.forest.events(row.node, which), colour, view, box);
    }
  }

  // -- text ------------------------------------------------------------------------------------------------------------------------------

  #label(row, top, number) {
    const { context } = this.surface;
    const { model, palette } = this;
    const middle = row.type === "kind" ? top + 11 : top + row.height / 2;
    if (middle < this.axis + 2) return;
    const [name, detail] = this.#names(row);
    const left = 8 + row.depth * INDENT;
    let room = this.gutter - left - 76;
    context.textBaseline = "middle";
    context.textAlign = "left";
    context.fillStyle = palette.css.faint;
    context.font = SMALL;
    if (row.type === "link" || row.type === "group") context.fillText(model.open.has(row.key) ? "▾" : "▸", left, middle);
    context.font = row.type === "file" ? FONT : BOLD;
    context.fillStyle = number === model.cursor ? palette.css.accent : palette.css.text;
    const label = this.#fit(name, room - INDENT, row.type === "file" && model.by !== "directory");
    context.fillText(label, left + INDENT, middle);
    room -= context.measureText(label).width + INDENT + 8;
    context.font = SMALL;
    context.fillStyle = palette.css.faint;
    if (detail && room > 24) context.fillText(this.#fit(detail, room), this.gutter - 76 - room, middle);
    context.textAlign = "right";
    if (row.node) {
      const [one, other] = row.node.totals;
      if (one.reads) context.fillText(duration(one[model.measure]), this.gutter - 8, middle);
      if (other) this.#compared(one, other, middle);
    } else if (row.type === "path") {
      const sum = ({ phases }) => phases.reduce((all, time) => all + time, 0);
      const waited = model.starts.map(({ sums, path }) => ({ reads: path ? 1 : 0, path: sum(sums) }));
      if (waited[0].reads) context.fillText(duration(waited[0].path), this.gutter - 8, middle);
      if (waited[1]) this.#compared(...waited, middle);
    } else {
      this.#linkTotals(row, middle);
    }
    if (row.type === "link") this.#peak(top);
    if (row.type === "file") this.#times(row, middle);
  }

  #names(row) {
    const { starts, lanes } = this.model;
    if (row.type === "path") return ["Critical path", starts[0].path ? many(starts[0].path.count, "wait") : ""];
    if (row.type === "link") return ["Link", `${starts.map(({ gets }) => count(gets.count)).join(" | ")} GETs`];
    if (row.type === "kind") return [KIND_LABELS[row.kind], lanes.map(({ kinds }) => count(kinds[row.kind].list.length)).join(" | ")];
    return [row.node.label, row.type === "group" ? many(row.node.fileCount, "file") : ""];
  }

  #linkTotals(row, middle) {
    const { context } = this.surface;
    const of = ({ sums }) => (row.type === "link" ? sums.moved : sums.kinds[row.kind].moved);
    const [one, other] = this.model.starts.map(of);
    context.fillText(bytes(one), this.gutter - 8, middle);
    if (other === undefined) return;
    const right = this.width - ENDPAD;
    context.fillText(bytes(other), right - 76, middle);
    if (one !== other) context.fillText((one > other ? "+" : "−") + bytes(Math.abs(one - other)), right, middle);
  }

  /** What the other start waited, and how much more or less this one did: by colour, and by sign. */
  #compared(one, other, middle) {
    const { context } = this.surface;
    const right = this.width - ENDPAD;
    const { measure } = this.model;
    context.fillText(other.reads ? duration(other[measure]) : "–", right - 76, middle);
    const more = one[measure] - other[measure];
    if (Math.abs(more) < LITTLE || Math.abs(more) < 0.02 * other[measure]) context.fillStyle = this.palette.css.faint;
    else context.fillStyle = more > 0 ? this.palette.css.worse : this.palette.css.better;
    if (one.reads || other.reads) context.fillText(difference(more), right, middle);
  }

  #peak(top) {
    const { context } = this.surface;
    const most = Math.max(...this.model.lanes.map(({ peak }) => peak));
    context.textAlign = "left";
    context.fillStyle = this.palette.css.faint;
    for (const { left } of this.panes) {
      const text = `${bytes(most * 1e6)}/s`;
      context.globalAlpha = 0.8;
      context.fillStyle = this.palette.css.back;
      context.fillRect(left, top + 1, context.measureText(text).width + 6, 14);
      context.globalAlpha = 1;
      context.fillStyle = this.palette.css.faint;
      context.fillText(text, left + 3, top + 9);
    }
  }

  /** Say how long the waits of a file were, behind their bars, where there is room. */
  #times(row, middle) {
    const { context } = this.surface;
    const { model } = this;
    context.font = SMALL;
    context.textAlign = "left";
    context.fillStyle = this.palette.css.faint;
    this.panes.forEach(({ right }, which) => {
      const start = model.starts[which];
      const { reads } = model.forest.events(row.node, which);
      if (reads.length > TOLD_MAX) return;
      reads.forEach((read, at) => {
        const end = this.place(start.reads.until[read], which, model);
        const next = at + 1 < reads.length ? this.place(start.reads.t[reads[at + 1]], which, model) : right;
        const isSeen = start.reads.wait[read] > 3 * this.scale(model.view);
        if (isSeen && end >= this.panes[which].left && Math.min(next, right) - end > 56) {
          context.fillText(duration(start.reads.wait[read]), end + 4, middle);
        }
      });
    });
  }

  /** Shorten a text to a room, at its end, or at its beginning if that is where it tells less. Remembered: measuring is dear. */
  #fit(text, room, atStart = false) {
    const { context } = this.surface;
    const key = `${Math.round(room)} ${context.font === BOLD} ${text}`;
    let fitted = this.fitted.get(key);
    if (fitted !== undefined) return fitted;
    fitted = text;
    if (context.measureText(text).width > room) {
      let low = 0;
      let high = text.length;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        const tried = atStart ? `…${text.slice(-middle)}` : `${text.slice(0, middle)}…`;
        if (context.measureText(tried).width <= room) low = middle;
        else high = middle - 1;
      }
      fitted = low ? (atStart ? `…${text.slice(-low)}` : `${text.slice(0, low)}…`) : "";
    }
    if (this.fitted.size > 20000) this.fitted.clear();
    this.fitted.set(key, fitted);
    return fitted;
  }

  // -- what is chosen, and the axis ------------------------------------------------------------------------------------------------------

  /** Mark what is chosen: its moment by a line, the read and the GET that it waited for by frames. */
  #outline(seen) {
    const { chosen, starts } = this.model;
    if (!chosen || chosen.type === "row") return;
    const { context } = this.surface;
    const { which } = chosen;
    const [from] = spanOf(starts[which], chosen);
    const { left, right } = this.panes[which];
    const x = this.place(from, which, this.model);
    context.strokeStyle = context.fillStyle = this.palette.css.accent;
    context.lineWidth = 1;
    context.globalAlpha = 0.6;
    if (x >= left && x < right) context.fillRect(x, this.axis, 1, this.height);
    context.globalAlpha = 1;
    context.lineWidth = 1.5;
    for (const one of related(starts[which], chosen)) {
      for (const { row, top } of seen) this.#frame(row, top, one, which);
    }
  }

  #frame(row, top, one, which) {
    const { model } = this;
    const start = model.starts[which];
    const { left, right } = this.panes[which];
    const [from, to] = spanOf(start, one).map((time) => this.place(time, which, model));
    if (to < left || from > right) return;
    let [y, height] = [top + 2, row.height - 4];
    if (one.type === "get") {
      if (row.type !== "kind" || row.kind !== start.gets.kind[one.index]) return;
      y = top + 2.5 + model.lanes[which].lane[one.index] * HEIGHTS.lane;
      height = HEIGHTS.lane + 2;
    } else {
      const events = row.type === "file" ? model.forest.events(row.node, which) : null;
      if (!events?.[`${one.type}s`].includes(one.index)) return;
    }
    if (y < this.axis) return;
    const x = Math.max(from, left) - 1.5;
    this.surface.context.strokeRect(x, y, Math.max(Math.min(to, right) - x + 1.5, 5), height);
  }

  #head() {
    const { context } = this.surface;
    const { palette, model } = this;
    const isOne = model.starts.length === 1;
    context.fillStyle = palette.css.panel;
    context.fillRect(0, 0, this.width, this.axis);
    context.fillStyle = palette.css.grid;
    context.fillRect(0, this.axis - 1, this.width, 1);
    context.textBaseline = "middle";
    const line = this.axis - 12;
    this.panes.forEach(({ left, right }, which) => {
      const { step, found } = this.#ticks(model.starts[which]);
      context.textAlign = "left";
      context.font = BOLD;
      context.fillStyle = palette.css.text;
      if (!isOne) {
        const { name, head, length } = model.starts[which];
        const title = `${name}  ${head.ref || (head.manifest ?? "").slice(0, 12)}  ${duration(length)}`;
        context.fillText(this.#fit(title, right - left), left + 2, 12);
      }
      context.font = SMALL;
      context.fillStyle = palette.css.faint;
      for (const at of found) {
        const x = this.place(at, which, model);
        const text = tickLabel(at, step);
        if (x + context.measureText(text).width + 4 < right) context.fillText(text, x + 3, line);
        context.fillRect(x, this.axis - 6, 1, 6);
      }
    });
    context.textAlign = "right";
    const measure = model.measure === "path" ? "on the path" : "waited";
    context.fillText(isOne ? measure : `${measure} A`, this.gutter - 8, line);
    if (!isOne) {
      context.fillText("B", this.width - ENDPAD - 76, line);
      context.fillText("A − B", this.width - ENDPAD, line);
    }
  }
}

/** When something that can be chosen began and ended. */
export function spanOf({ reads, opens, gets }, { type, index }) {
  if (type === "read") return [reads.t[index], reads.until[index]];
  if (type === "open") return [opens.t[index], opens.t[index]];
  return [gets.queued[index], gets.decoded[index]];
}

/** What is marked together: a read and the GET that it waited for last; a GET and the reads that waited for it. */
export function related({ reads }, chosen) {
  const found = [chosen];
  if (chosen.type === "read" && reads.get[chosen.index] >= 0) found.push({ type: "get", index: reads.get[chosen.index] });
  if (chosen.type === "get") {
    for (let read = 0; read < reads.count && found.length < 100; read++) {
      if (reads.get[read] === chosen.index) found.push({ type: "read", index: read });
    }
  }
  return found;
}
