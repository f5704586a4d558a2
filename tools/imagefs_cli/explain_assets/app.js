/**
 * The page as it is used: what is shown, grouped, searched and chosen, and when it is painted.
 *
 * All state is in one `App`. Whatever changes it asks for a frame; however much changes, there is one frame for it. A change of what is
 * searched, grouped or sorted makes the rows anew.
 */

import { Chart, spanOf } from "./chart.js";
import { KINDS, TIERS } from "./data.js";
import { describe, shownAs } from "./details.js";
import { byId, element, swatch } from "./dom.js";
import { Forest, matching, unite } from "./forest.js";
import { lanesOf } from "./lanes.js";
import { Overview } from "./overview.js";
import { Palette } from "./palette.js";
import { pick, rowAt, rowsOf } from "./rows.js";
import { KIND_NAMES, PHASE_NAMES, TIER_NAMES } from "./summary.js";
import { FileTable } from "./table.js";
import { count, many } from "./units.js";
import { View } from "./view.js";
import { PHASES } from "./waits.js";

const ROWS_AT_FIRST = 26;
const ALL_OPEN = 300;
const LANES_AT_FIRST = 14;
const NEAR = 4; // pixels from what is meant
const DRAWS_KEPT = 1000;

export class App {
  constructor(starts) {
    this.starts = starts;
    this.union = unite(starts);
    this.lanes = starts.map(lanesOf);
    this.palette = new Palette(byId("probe"));
    this.chart = new Chart(byId("canvas"), this.palette);
    this.overview = new Overview(byId("overview"), this.palette);
    this.view = new View(starts, () => this.moved());
    // What a start's length consists of is what counts, if it is known.
    this.measure = starts.every(({ path }) => path) ? "path" : "wait";
    this.table = new FileTable(starts, this.union, this.measure, (file) => this.reveal(file));
    this.by = "directory";
    this.order = "first";
    this.colour = "tier";
    this.query = "";
    this.isInView = false; // only rows that have events in the stretch of time that is seen
    this.mask = null;
    this.hover = this.cursor = -1;
    this.chosen = null;
    this.opened = new Map();
    this.draws = [];
    this.frame = 0;
    const lanes = Math.max(...this.lanes.map(({ kinds }) => kinds.reduce((sum, kind) => sum + kind.lanes, 0)));
    this.isLinkOpen = lanes <= LANES_AT_FIRST;
    this.regroup();
    this.table.show();
    this.describe();
  }

  // -- what is shown ---------------------------------------------------------------------------------------------------------------------

  /** Make the rows anew: after another grouping, order or search. */
  regroup() {
    this.forest = new Forest(this.starts, this.union, this);
    const key = this.query ? "search" : this.by;
    if (this.query) this.opened.set(key, this.forest.leaves.length <= ALL_OPEN ? this.forest.groups() : this.forest.opened(ROWS_AT_FIRST));
    else if (!this.opened.has(key)) this.opened.set(key, this.forest.opened(ROWS_AT_FIRST));
    this.open = this.opened.get(key);
    if (this.isLinkOpen) this.open.add("link");
    else this.open.delete("link");
    this.cursor = this.hover = -1;
    this.chosen = null;
    this.relayout();
    byId("chart").scrollTop = 0;
    this.needsOverview = true;
  }

  relayout() {
    this.layout = rowsOf(this);
    byId("spacer").style.height = `${this.layout.height + this.chart.axis + 4}px`;
    this.changed();
  }

  group(by) {
    this.by = by;
    this.regroup();
  }

  sort(order) {
    this.order = order;
    this.regroup();
  }

  onlyInView(isInView) {
    this.isInView = isInView;
    this.relayout();
  }

  /** The view has changed: rows may have come or gone by that, and what the pointer pointed at is elsewhere. */
  moved() {
    byId("tip").hidden = true;
    if (!this.isInView) return this.changed();
    const row = this.layout.rows[this.cursor];
    this.relayout();
    this.hover = -1;
    this.cursor = row ? this.layout.rows.findIndex(({ key }) => key === row.key) : -1;
  }

  paintBy(colour) {
    this.colour = colour;
    this.needsOverview = true;
    this.showLegend();
    this.changed();
  }

  search(text) {
    if (text === this.query) return;
    this.query = text;
    this.mask = matching(this.starts, text);
    this.regroup();
    const files = new Set(this.forest.leaves.map(({ file }) => file));
    this.table.restrict(this.mask ? files : null);
    byId("found").textContent = this.mask ? `${many(files.size, "file")} of ${count(this.table.rows.length)}` : "";
    this.describe();
  }

  setAllOpen(isOpen) {
    for (const key of this.forest.groups()) this.open[isOpen ? "add" : "delete"](key);
    this.setLinkOpen(isOpen);
    this.cursor = this.hover = -1;
    this.relayout();
  }

  setLinkOpen(isOpen) {
    this.isLinkOpen = isOpen;
    this.open[isOpen ? "add" : "delete"]("link");
  }

  toggle(row) {
    if (row.type === "link") this.setLinkOpen(!this.isLinkOpen);
    else if (!this.open.delete(row.key)) this.open.add(row.key);
    this.relayout();
  }

  // -- painting --------------------------------------------------------------------------------------------------------------------------

  changed() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.draw();
    });
  }

  resize() {
    const chart = byId("chart");
    this.chart.resize(chart.clientWidth, chart.clientHeight, this.starts.length);
    byId("spacer").style.height = `${this.layout.height + this.chart.axis + 4}px`;
    this.needsOverview = true;
    this.changed();
  }

  recolour() {
    this.palette.read();
    this.needsOverview = true;
    this.changed();
  }

  draw() {
    const began = performance.now();
    if (this.needsOverview) this.overview.paint(this);
    this.needsOverview = false;
    this.chart.draw(this, byId("chart").scrollTop);
    this.overview.draw(this);
    this.draws.push(performance.now() - began);
    if (this.draws.length > DRAWS_KEPT) this.draws.shift();
    byId("reset").disabled = this.view.isWhole;
  }

  showLegend() {
    const tiers = [...TIERS].reverse().map((tier) => [tier, TIER_NAMES[tier]]);
    const phases = PHASES.map((phase) => [phase, PHASE_NAMES[phase]]);
    const reads = this.colour === "tier" ? tiers : phases;
    const kinds = KINDS.map((kind) => [kind, KIND_NAMES[kind]]);
    const items = ([color, label]) => element("li", {}, swatch(color), label);
    byId("legend").replaceChildren(
      element("li", { class: "of" }, "Reads"),
      ...reads.map(items),
      element("li", { class: "of" }, "GETs"),
      ...kinds.map(items),
      element("li", { class: "of" }, "Opens"),
      ...[["faint", "by the daemon"], ["native", "by the kernel alone"]].map(items),
    );
  }

  // -- the pointer -----------------------------------------------------------------------------------------------------------------------

  /** What is at a place of the chart: its row, and the event in it, if there is one. */
  #at(x, y) {
    const { axis } = this.chart;
    if (y < axis || x < 0) return { number: -1 };
    const scrolled = y - axis + byId("chart").scrollTop;
    const number = rowAt(this.layout, scrolled);
    if (number < 0) return { number };
    const row = this.layout.rows[number];
    const { which, time } = this.chart.at(x, this.view);
    const near = NEAR * this.chart.scale(this.view);
    const found = which < 0 ? null : pick(this, row, which, time + this.starts[which].begun, scrolled - row.top, near);
    return { number, row, which, found };
  }

  point(x, y) {
    const { number, row, found } = this.#at(x, y);
    if (number !== this.hover) {
      this.hover = number;
      this.changed();
    }
    byId("chart").classList.toggle("pointing", Boolean(found) || (number >= 0 && x < this.chart.gutter));
    const tip = byId("tip");
    const item = found ?? (row && x < this.chart.gutter ? { type: "row", row } : null);
    tip.hidden = !item;
    if (!item) return;
    tip.replaceChildren(...shownAs(describe(this, item), 6));
    const { clientWidth, clientHeight } = byId("chart");
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(0, x + 16 + box.width > clientWidth ? x - box.width - 12 : x + 16)}px`;
    tip.style.top = `${Math.max(0, y + 18 + box.height > clientHeight ? y - box.height - 10 : y + 18)}px`;
  }

  click(x, y) {
    const { number, row, found } = this.#at(x, y);
    if (number < 0) return this.choose(null);
    this.cursor = number;
    this.choose(found ?? { type: "row", row });
    if (x < this.chart.gutter && (row.type === "group" || row.type === "link")) this.toggle(row);
  }

  frameAt(x, y) {
    const { found } = this.#at(x, y);
    if (!found) return;
    this.choose(found);
    this.frameChosen();
  }

  showStretch(which, from, to) {
    const { left, right } = this.chart.panes[which];
    const inPane = (x) => Math.min(Math.max(x, left), right);
    const [a, b] = [inPane(Math.min(from, to)), inPane(Math.max(from, to))];
    byId("stretch").hidden = false;
    byId("stretch").style.left = `${a}px`;
    byId("stretch").style.width = `${b - a}px`;
  }

  hideStretch() {
    byId("stretch").hidden = true;
  }

  takeStretch(which, from, to) {
    this.hideStretch();
    const { left, right } = this.chart.panes[which];
    const time = (x) => this.chart.at(Math.min(Math.max(x, left), right - 0.01), this.view).time;
    this.view.set(time(Math.min(from, to)), time(Math.max(from, to)));
  }

  // -- what is chosen --------------------------------------------------------------------------------------------------------------------

  /** Choose `{type, which, index}`, `{type: "row", row}`, or nothing. */
  choose(item) {
    this.chosen = item;
    if (!item) this.cursor = -1;
    this.describe();
    this.changed();
  }

  describe() {
    const panel = byId("details");
    if (this.chosen) {
      const described = describe(this, this.chosen);
      panel.replaceChildren(...shownAs(described));
      byId("said").textContent = [described.title, ...described.facts.slice(0, 4).map((fact) => fact.slice(0, 2).join(" "))].join(", ");
    } else {
      const hint = element("p", { class: "hint" }, "Click a bar, a GET or a row to see all that is known of it.");
      const row = this.layout.rows[0];
      panel.replaceChildren(hint, ...(row ? shownAs(describe(this, { type: "row", row })) : []));
      byId("said").textContent = "";
    }
  }

  moveCursor(by) {
    byId("tip").hidden = true;
    const last = this.layout.rows.length - 1;
    this.cursor = Math.min(Math.max(this.cursor + by, 0), last);
    const row = this.layout.rows[this.cursor];
    if (!row) return;
    this.#scrollTo(row);
    this.choose({ type: "row", row });
  }

  #scrollTo(row) {
    const chart = byId("chart");
    const room = chart.clientHeight - this.chart.axis;
    if (row.top < chart.scrollTop) chart.scrollTop = row.top;
    else if (row.top + row.height > chart.scrollTop + room) chart.scrollTop = row.top + row.height - room;
  }

  enter() {
    const row = this.layout.rows[this.cursor];
    if (!row) return;
    if (row.type === "group" || row.type === "link") this.toggle(row);
    else this.step(1);
  }

  /** Choose the next or the former event of the row under the cursor. */
  step(by) {
    const row = this.layout.rows[this.cursor];
    if (!row) return;
    const which = this.chosen?.which ?? 0;
    const type = row.node ? (this.forest.events(row.node, which).reads.length ? "read" : "open") : "get";
    const list = row.node ? this.forest.events(row.node, which)[`${type}s`] : this.lanes[which].kinds[row.kind ?? 0].list;
    if (!list.length) return;
    const now = this.chosen?.type === type ? list.indexOf(this.chosen.index) : -1;
    const next = now < 0 ? (by > 0 ? 0 : list.length - 1) : Math.min(Math.max(now + by, 0), list.length - 1);
    this.choose({ type, which, index: list[next] });
    const [from, to] = this.#spanInView(this.chosen);
    if (to < this.view.from || from > this.view.to) this.view.set(from - this.view.span / 2, from + this.view.span / 2);
  }

  frameChosen() {
    if (!this.chosen) return;
    if (this.chosen.type !== "row") return this.view.frame(...this.#spanInView(this.chosen));
    if (this.chosen.row.node) this.#frameNode(this.chosen.row.node);
  }

  /** When an event was, in the view's time. */
  #spanInView(item) {
    const start = this.starts[item.which];
    return spanOf(start, item).map((time) => time - start.begun);
  }

  #frameNode(node) {
    let [from, to] = [Infinity, 0];
    this.starts.forEach(({ begun }, which) => {
      from = Math.min(from, node.totals[which].first - begun);
      to = Math.max(to, node.totals[which].last - begun);
    });
    if (from < Infinity) this.view.frame(from, to);
  }

  /** Show a file (by its number in the union): open what it lies in, scroll to it, and choose it. */
  reveal(file) {
    const leaves = this.forest.leaves.filter((leaf) => leaf.file === file);
    const leaf = leaves.sort((a, b) => b.totals[0].wait - a.totals[0].wait)[0];
    if (!leaf) return;
    for (let node = leaf.parent; node?.parent; node = node.parent) this.open.add(node.key);
    this.relayout();
    this.cursor = this.layout.rows.findIndex((row) => row.node === leaf);
    const row = this.layout.rows[this.cursor];
    byId("chart").scrollTop = row.top - (byId("chart").clientHeight - this.chart.axis) / 2;
    this.choose({ type: "row", row });
    this.#frameNode(leaf);
  }
}
