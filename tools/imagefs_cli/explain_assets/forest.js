/**
 * The rows of the chart: files, grouped by directory, tier or process, or not at all.
 *
 * A leaf is one file in one group. Leaves are numbered so that each group has a range [low, high) of them, whatever the grouping; the
 * events of a start are kept by leaf, so a group's events are had without a search. Files of two starts are the same leaf if their paths
 * are the same, processes if their commands are.
 */

import { TIERS } from "./data.js";

const NATIVE = TIERS.length;
const UNREAD = NATIVE + 1;
/** By tier: what costs most first. */
const TIER_ORDER = [3, 2, 1, 0, NATIVE, UNREAD];
const TIER_LABELS = ["Tree", "RAM", "SSD", "Store", "Kernel alone", "Opened, not read"];

/** Number the files and processes of all starts together. */
export function unite(starts) {
  const paths = [];
  const labels = [];
  const files = starts.map((start) => numbered(start.files.path, start.files.label, paths, labels));
  const commands = [];
  const processes = starts.map((start) => {
    const seen = new Map();
    const names = start.processes.map(({ label }) => {
      seen.set(label, (seen.get(label) ?? 0) + 1);
      return seen.get(label) > 1 ? `${label} #${seen.get(label)}` : label;
    });
    return numbered(names, names, commands, commands);
  });
  return { paths, labels, files, commands, processes };

  function numbered(keys, names, allKeys, allNames) {
    const known = new Map(allKeys.map((key, number) => [key, number]));
    return Int32Array.from(keys, (key, at) => {
      if (!known.has(key)) {
        known.set(key, allKeys.length);
        allKeys.push(key);
        if (allNames !== allKeys) allNames.push(names[at]);
      }
      return known.get(key);
    });
  }
}

/** For each start, which reads and opens a search finds: by words that all are in the file's path or the process's command. */
export function matching(starts, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return null;
  return starts.map((start) => {
    const files = start.files.label.map((label) => label.toLowerCase());
    const processes = start.processes.map(({ label, pid }) => `${label.toLowerCase()} ${pid}`);
    const hit = new Map();
    const found = (file, process) => {
      const key = file * processes.length + process;
      let answer = hit.get(key);
      if (answer === undefined) {
        answer = words.every((word) => files[file].includes(word) || processes[process].includes(word)) ? 1 : 0;
        hit.set(key, answer);
      }
      return answer;
    };
    const of = (events) => Uint8Array.from({ length: events.count }, (_, i) => found(events.file[i], events.process[i]));
    const reads = of(start.reads);
    const gets = new Uint8Array(start.gets.count);
    reads.forEach((hits, i) => {
      if (hits && start.reads.get[i] >= 0) gets[start.reads.get[i]] = 1;
    });
    return { reads, opens: of(start.opens), gets };
  });
}

const NONE = Object.freeze([]);

class Node {
  constructor(key, label, parent) {
    this.key = key;
    this.label = label;
    this.parent = parent;
    this.children = NONE;
    this.file = -1; // of a leaf: the number of its path in the union
    this.low = this.high = 0;
    this.totals = NONE;
    this.lists = NONE;
  }
}

export class Forest {
  /**
   * `by`: directory, tier, process or file; `order`: first, most or name; `measure`: path or wait, of what `most` is the most; `mask`: what
   * `matching` gave.
   */
  constructor(starts, union, { by, order, measure, mask }) {
    this.starts = starts;
    this.measure = measure;
    this.root = new Node("", "", null);
    this.leaves = [];
    const known = by === "process" ? new Map() : new Int32Array((UNREAD + 1) * union.paths.length);
    const numbers = starts.map((start, which) => this.#place(start, which, union, by, mask?.[which], known));
    if (by === "directory") nest(this.root, this.leaves, union);
    else this.#group(by, union);
    this.#total(this.root);
    sort(this.root, comparison(order, measure), by);
    const renumbered = this.#number();
    this.indexes = numbers.map(({ reads, opens }) => ({ reads: sorted(reads, renumbered), opens: sorted(opens, renumbered) }));
  }

  /** Give each event of a start its leaf, -1 if it is not searched for, and add it to the leaf's totals. */
  #place(start, which, union, by, mask, known) {
    const { reads, opens } = start;
    const group = grouper(start, union.processes[which], by);
    const size = union.paths.length;
    const leafOf = (groupNumber, file) => {
      const path = union.files[which][file];
      const key = groupNumber * size + path;
      // Processes may be many and have few files each; of tiers there are few. Leaves count from 1 in there.
      const leaf = known instanceof Map ? known.get(key) : known[key];
      if (leaf) return leaf - 1;
      const node = new Node("", "", null);
      node.file = path;
      node.group = groupNumber;
      node.totals = this.starts.map(nothing);
      this.leaves.push(node);
      if (known instanceof Map) known.set(key, this.leaves.length);
      else known[key] = this.leaves.length;
      return this.leaves.length - 1;
    };
    const readLeaves = new Int32Array(reads.count).fill(-1);
    for (let i = 0; i < reads.count; i++) {
      if (mask && !mask.reads[i]) continue;
      readLeaves[i] = leafOf(group.read(i), reads.file[i]);
      const total = this.leaves[readLeaves[i]].totals[which];
      total.reads += 1;
      total.wait += reads.wait[i];
      total.path += start.onPath[i];
      if (reads.wait[i] > total.longest) total.longest = reads.wait[i];
      if (reads.t[i] < total.first) total.first = reads.t[i];
      if (reads.until[i] > total.last) total.last = reads.until[i];
    }
    const openLeaves = new Int32Array(opens.count).fill(-1);
    for (let i = 0; i < opens.count; i++) {
      if (mask && !mask.opens[i]) continue;
      openLeaves[i] = leafOf(group.open(i), opens.file[i]);
      const total = this.leaves[openLeaves[i]].totals[which];
      total.opens += 1;
      if (opens.t[i] < total.first) total.first = opens.t[i];
      if (opens.t[i] > total.last) total.last = opens.t[i];
    }
    return { reads: readLeaves, opens: openLeaves };
  }

  #group(by, union) {
    const groups = new Map();
    for (const leaf of this.leaves) {
      let parent = this.root;
      if (by !== "file") {
        if (!groups.has(leaf.group)) {
          const label = by === "tier" ? TIER_LABELS[leaf.group] : union.commands[leaf.group];
          const node = new Node(`${by}/${label}`, label, this.root);
          node.group = leaf.group;
          groups.set(leaf.group, node);
          adopt(this.root, node);
        }
        parent = groups.get(leaf.group);
      }
      leaf.label = union.labels[leaf.file];
      leaf.key = `${parent.key}\n${union.paths[leaf.file]}`;
      adopt(parent, leaf);
    }
  }

  #total(node) {
    if (node.file >= 0) return;
    node.totals = this.starts.map(nothing);
    node.fileCount = 0;
    for (const child of node.children) {
      this.#total(child);
      node.fileCount += child.file >= 0 ? 1 : child.fileCount;
      node.totals.forEach((total, which) => add(total, child.totals[which]));
    }
  }

  /** Number the leaves as they follow one another; return, by former number, the new one. */
  #number() {
    const former = new Map(this.leaves.map((leaf, number) => [leaf, number]));
    const renumbered = new Int32Array(this.leaves.length);
    const inOrder = [];
    const visit = (node) => {
      node.low = inOrder.length;
      if (node.file >= 0) {
        renumbered[former.get(node)] = inOrder.length;
        inOrder.push(node);
      } else {
        node.children.forEach(visit);
      }
      node.high = inOrder.length;
    };
    visit(this.root);
    this.leaves = inOrder;
    return renumbered;
  }

  /** The events of a row in one start, in order of time: `{reads, opens, peak}`; peak is how many waited at once, at most. */
  events(node, which) {
    if (node.lists === NONE) node.lists = [];
    node.lists[which] ??= this.#events(node, which);
    return node.lists[which];
  }

  #events(node, which) {
    const { reads, opens } = this.indexes[which];
    const found = { reads: inTime(reads, node), opens: inTime(opens, node) };
    found.peak = peakOf(this.starts[which].reads, found.reads);
    return found;
  }

  /** The rows to be seen, if the groups whose keys are in `open` are open: if a view is given, those with events in it. */
  rows(open, view = null) {
    const found = [];
    const visit = (node, depth) => {
      if (view && !this.#isIn(node, view)) return;
      found.push({ node, depth });
      if (node.file < 0 && open.has(node.key)) for (const child of node.children) visit(child, depth + 1);
    };
    for (const child of this.root.children) visit(child, 0);
    return found;
  }

  #isIn({ low, high, totals }, view) {
    return totals.some(({ first, last }, which) => {
      const { from, to } = view.of(this.starts[which]);
      if (first > to || last < from) return false;
      const { reads, opens } = this.starts[which];
      const has = ({ offsets, list }, begin, end) => {
        for (let at = offsets[low]; at < offsets[high]; at++) if (begin[list[at]] <= to && end[list[at]] >= from) return true;
        return false;
      };
      return has(this.indexes[which].reads, reads.t, reads.until) || has(this.indexes[which].opens, opens.t, opens.t);
    });
  }

  /** The groups to open first: those that waited most, as long as no more than `rows` rows come of it. */
  opened(rows) {
    const open = new Set();
    const weight = (node) => Math.max(...node.totals.map((total) => total[this.measure] + total.opens));
    const candidates = this.root.children.filter((node) => node.file < 0);
    let left = rows - this.root.children.length;
    while (candidates.length) {
      candidates.sort((a, b) => weight(a) - weight(b));
      const node = candidates.pop();
      if (node.children.length > left) continue;
      left -= node.children.length;
      open.add(node.key);
      candidates.push(...node.children.filter((child) => child.file < 0));
    }
    return open;
  }

  /** Every group there is. */
  groups() {
    const found = new Set();
    const visit = (node) => {
      if (node.file >= 0) return;
      if (node.parent) found.add(node.key);
      node.children.forEach(visit);
    };
    visit(this.root);
    return found;
  }
}

function adopt(parent, child) {
  if (parent.children === NONE) parent.children = [];
  parent.children.push(child);
  child.parent = parent;
}

function nothing() {
  return { reads: 0, opens: 0, wait: 0, path: 0, longest: 0, first: Infinity, last: -Infinity };
}

function add(total, more) {
  total.reads += more.reads;
  total.opens += more.opens;
  total.wait += more.wait;
  total.path += more.path;
  total.longest = Math.max(total.longest, more.longest);
  total.first = Math.min(total.first, more.first);
  total.last = Math.max(total.last, more.last);
}

/** Say which group the reads and the opens of a start belong to. */
function grouper({ files, reads, opens }, processes, by) {
  if (by === "process") return { read: (i) => processes[reads.process[i]], open: (i) => processes[opens.process[i]] };
  if (by !== "tier") return { read: () => 0, open: () => 0 };
  const first = new Int8Array(files.count + 1).fill(UNREAD);
  for (let i = reads.count - 1; i >= 0; i--) first[reads.file[i]] = reads.tier[i];
  return { read: (i) => reads.tier[i], open: (i) => (opens.native[i] ? NATIVE : first[opens.file[i]]) };
}

/** Make directories of paths; one that holds nothing but another directory is one row with it. */
function nest(root, leaves, union) {
  const folders = new Map();
  for (const leaf of leaves) {
    const path = union.paths[leaf.file];
    const cut = path.lastIndexOf("/") + 1;
    leaf.key = path;
    // The label of a path is escaped, but slashes are not: the last part of it is the last part of the path.
    leaf.label = union.labels[leaf.file].slice(union.labels[leaf.file].lastIndexOf("/") + 1);
    adopt(folder(path.slice(0, cut), union.labels[leaf.file]), leaf);
  }
  root.children.forEach(merge);
  for (const node of root.children) if (node.file < 0 && node.key.startsWith("/")) node.label = `/${node.label}`;

  function folder(path, label) {
    if (path === "" || path === "/") return root;
    let node = folders.get(path);
    if (!node) {
      const parts = label.split("/").slice(0, path.split("/").length - 1);
      const parent = folder(path.slice(0, path.lastIndexOf("/", path.length - 2) + 1), label);
      node = new Node(path, parts.at(-1), parent);
      folders.set(path, node);
      adopt(parent, node);
    }
    return node;
  }

  function merge(node) {
    if (node.file >= 0) return;
    while (node.children.length === 1 && node.children[0].file < 0) {
      const only = node.children[0];
      node.label += `/${only.label}`;
      node.key = only.key;
      node.children = only.children;
      for (const child of node.children) child.parent = node;
    }
    node.children.forEach(merge);
  }
}

function sort(node, compare, by) {
  if (node.file >= 0) return;
  if (by === "tier" && !node.parent) node.children.sort((a, b) => TIER_ORDER.indexOf(a.group) - TIER_ORDER.indexOf(b.group));
  else node.children.sort(compare);
  for (const child of node.children) sort(child, compare, by);
}

function comparison(order, measure) {
  const most = ({ totals }) => Math.max(...totals.map((total) => total[measure]));
  if (order === "most") return (a, b) => most(b) - most(a) || firstOf(a) - firstOf(b);
  if (order === "name") return (a, b) => (a.label < b.label ? -1 : a.label > b.label ? 1 : 0);
  return (a, b) => firstOf(a) - firstOf(b);
}

/** When the first start accessed a row first; what it never did comes after all that it did. */
function firstOf({ totals }) {
  const [one, other] = totals;
  return one.first < Infinity ? one.first : 1e12 + (other?.first ?? 0);
}

/** Sort events by leaf, in order of time within each: `list[offsets[leaf] .. offsets[leaf + 1]]`. */
function sorted(leafOf, renumbered) {
  const offsets = new Int32Array(renumbered.length + 1);
  const leaves = leafOf.map((leaf) => (leaf < 0 ? -1 : renumbered[leaf]));
  for (const leaf of leaves) if (leaf >= 0) offsets[leaf + 1] += 1;
  for (let leaf = 0; leaf < renumbered.length; leaf++) offsets[leaf + 1] += offsets[leaf];
  const list = new Int32Array(offsets[renumbered.length]);
  const next = offsets.slice();
  for (let i = 0; i < leaves.length; i++) if (leaves[i] >= 0) list[next[leaves[i]]++] = i;
  return { offsets, list };
}

/** Events are numbered in order of time, so numbers in order are times in order. */
function inTime({ offsets, list }, { low, high }) {
  const found = list.slice(offsets[low], offsets[high]);
  return high - low > 1 ? found.sort() : found;
}

function peakOf(reads, list) {
  const ends = Float64Array.from(list, (i) => reads.until[i]).sort();
  let ended = 0;
  let peak = 0;
  for (let begun = 0; begun < list.length; begun++) {
    while (ended < begun && ends[ended] <= reads.t[list[begun]]) ended += 1;
    peak = Math.max(peak, begun + 1 - ended);
  }
  return peak;
}
