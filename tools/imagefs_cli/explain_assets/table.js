/**
 * The files that waited longest, as a table: also for who cannot see the chart. Sorted by any column, filtered by the search, a page of
 * rows at a time.
 */

import { TIERS } from "./data.js";
import { bar, byId, element } from "./dom.js";
import { TIER_NAMES } from "./summary.js";
import { bytes, count, difference, duration, share } from "./units.js";

const PAGE = 50;

export class FileTable {
  /** `choose(file)` is called with the number of a path in the union. */
  constructor(starts, union, measure, choose) {
    this.starts = starts;
    this.choose = choose;
    this.rows = fileRows(starts, union);
    this.columns = columnsOf(starts, measure, this.rows);
    this.sortBy = starts.length > 1 ? 3 : 1;
    this.isDescending = true;
    this.limit = PAGE;
    this.filter = null;
    byId("more").addEventListener("click", () => {
      this.limit += PAGE;
      this.show();
    });
  }

  /** Show only files in a set of numbers; null: all. */
  restrict(filter) {
    this.filter = filter;
    this.limit = PAGE;
    this.show();
  }

  show() {
    const { key } = this.columns[this.sortBy];
    const sign = this.isDescending ? -1 : 1;
    const keyed = this.rows.filter(({ file }) => !this.filter || this.filter.has(file)).map((row) => ({ row, key: key(row) }));
    keyed.sort((a, b) => (a.key < b.key ? -sign : a.key > b.key ? sign : a.row.file - b.row.file));
    const rows = keyed.map(({ row }) => row);
    const head = element("tr", {}, ...this.columns.map((column, at) => this.#head(column, at)));
    byId("slowest").querySelector("thead").replaceChildren(head);
    byId("slowest").querySelector("tbody").replaceChildren(...rows.slice(0, this.limit).map((row) => this.#row(row)));
    byId("more").hidden = rows.length <= this.limit;
    byId("more").textContent = `Show more (${count(Math.min(this.limit, rows.length))} of ${count(rows.length)} files)`;
  }

  #head({ title }, at) {
    const isSorted = at === this.sortBy;
    const button = element("button", { type: "button" }, title, isSorted ? (this.isDescending ? " ▾" : " ▴") : "");
    button.addEventListener("click", () => {
      this.isDescending = isSorted ? !this.isDescending : at > 0;
      this.sortBy = at;
      this.show();
      byId("files").scrollTop = 0;
      byId("slowest").querySelectorAll("thead button")[at].focus();
    });
    const sorted = isSorted ? (this.isDescending ? "descending" : "ascending") : null;
    return element("th", { scope: "col", "aria-sort": sorted, class: at ? "number" : null }, button);
  }

  #row(row) {
    const cells = this.columns.map(({ cell }, at) => {
      const content = cell(row);
      if (at) return element("td", { class: "number" }, content);
      const button = element("button", { type: "button", title: row.label }, content);
      button.addEventListener("click", () => this.choose(row.file));
      return element("th", { scope: "row" }, button);
    });
    return element("tr", {}, ...cells);
  }
}

function fileRows(starts, union) {
  const rows = new Map();
  starts.forEach((start, which) => {
    union.files[which].forEach((file, index) => {
      if (!start.byFile.reads[index] && !start.byFile.opens[index]) return;
      if (!rows.has(file)) rows.set(file, { file, label: union.labels[file], in: starts.map(() => null) });
      rows.get(file).in[which] = { start, index };
    });
  });
  return [...rows.values()];
}

/** What a file comes to in one start: 0 if it was not accessed there. */
function figure(row, which, name) {
  const there = row.in[which];
  return there ? there.start.byFile[name][there.index] : 0;
}

const NAMES = { path: "On the path", wait: "Waited" };

function columnsOf(starts, measure, rows) {
  const isCompared = starts.length > 1;
  const of = (name, which) => (row) => figure(row, which, name);
  const most = Math.max(1, ...starts.map((_, which) => rows.reduce((sum, row) => Math.max(sum, figure(row, which, measure)), 0)));
  const columns = [{ title: "File", key: (row) => row.label, cell: fileCell }];
  starts.forEach(({ name }, which) => {
    const title = isCompared ? `${NAMES[measure]} ${name}` : NAMES[measure];
    columns.push({ title, key: of(measure, which), cell: (row) => waitCell(row.in[which], measure, most) });
  });
  if (isCompared) {
    const change = (row) => figure(row, 0, measure) - figure(row, 1, measure);
    columns.push({ title: "A − B", key: (row) => Math.abs(change(row)), cell: (row) => changeCell(change(row)) });
  } else {
    const times = measure === "path" ? { Waited: "wait", "First at": "first" } : { Longest: "longest", "First at": "first" };
    for (const [title, name] of Object.entries(times)) columns.push({ title, key: of(name, 0), cell: (row) => duration(of(name, 0)(row)) });
  }
  return [...columns, ...fileColumns(starts)];
}

/** What is known of the files besides time: of several starts, of each, where that differs. */
function fileColumns(starts) {
  const each = (row, value) => row.in.map((there) => (there ? value(there) : null));
  const column = (title, value, text) => ({
    title,
    key: (row) => Math.max(...each(row, value).map((one) => one ?? -1)),
    cell: (row) => [...new Set(each(row, value).map((one) => (one === null ? "–" : text(one))))].join(" | "),
  });
  return [
    column("Reads", ({ start, index }) => start.byFile.reads[index], count),
    column("Touched", ({ start, index }) => start.byFile.touched[index] / Math.max(1, start.files.size[index]), (part) => share(part, 1)),
    column("Size", ({ start, index }) => start.files.size[index], bytes),
    column("Profiled", ({ start, index }) => start.files.profiled[index], (part) => (part ? share(part, 65535) : "no")),
  ];
}

/** The directories and the name: they are shortened apart. */
function fileCell({ label }) {
  const cut = label.lastIndexOf("/") + 1;
  const made = document.createDocumentFragment();
  for (const part of [label.slice(0, cut), label.slice(cut)]) if (part) made.append(element("span", {}, part));
  return made;
}

/** How long, with a bar as long as it is of the longest, in the colours of the tiers. */
function waitCell(there, measure, most) {
  if (!there) return "–";
  const { start, index } = there;
  const parts = [...TIERS].reverse().map((tier) => {
    const value = start.byFile.tiers[TIERS.indexOf(tier)][index];
    return { color: tier, label: TIER_NAMES[tier], value, text: duration(value) };
  });
  return element("span", { class: "withbar" }, bar(parts, most), duration(start.byFile[measure][index]));
}

function changeCell(change) {
  return element("span", { class: change < 0 ? "better" : change > 0 ? "worse" : "" }, difference(change));
}
