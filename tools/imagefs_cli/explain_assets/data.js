/**
 * The starts that the page carries, unpacked into columns.
 *
 * A column is one typed array: event number -> value. Reads and opens are in order of time. An index that points nowhere is made to point
 * at a stand-in behind the last file or process, and a time that has not come is taken for the end of all that is known, so nothing that
 * draws has to ask. Nothing is changed after it was unpacked.
 */

import { shown } from "./units.js";

export const TIERS = ["tree", "ram", "ssd", "store"];
export const [RAM, SSD, STORE] = [1, 2, 3];
export const KINDS = ["demand", "profile", "along", "ahead"];
export const [DEMAND, PROFILE] = [0, 1];

const NEVER = -1;
const FROM_ROW_BEFORE = new Set(["t", "file", "queued", "from", "read"]);
const FROM_COLUMN = { end: "start", until: "from", sent: "queued", first: "sent", arrived: "first", decoded: "arrived" };
const UNKNOWN = "(not known)";

/** Return the starts (one, or two to compare) from the text of the page's data element. */
export async function unpack(text) {
  const raw = atob(text);
  const packed = new Uint8Array(raw.length);
  for (let at = 0; at < raw.length; at++) packed[at] = raw.charCodeAt(at);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const { starts } = await new Response(stream).json();
  return starts.map((start, number) => startOf(start, "AB"[number]));
}

function startOf(packed, name) {
  const { head, files, processes } = packed;
  const limits = { file: files.path.length, process: processes.length };
  const start = {
    name,
    head,
    files: filesOf(files),
    processes: [...processes, { pid: 0, command: UNKNOWN, parent: -1 }].map((one) => ({ ...one, label: shown(one.command) })),
    packs: packed.packs,
    reads: columns(packed.reads, limits),
    opens: columns(packed.opens, limits),
    gets: columns(packed.gets, {}),
    touched: columns(packed.touched, limits),
    path: packed.path ? columns(packed.path, {}) : null,
  };
  const { reads, gets } = start;
  reads.until = reads.t.map((t, i) => t + reads.wait[i]);
  for (let i = 0; i < reads.count; i++) {
    if (!(reads.get[i] >= 0 && reads.get[i] < gets.count)) reads.get[i] = -1;
    reads.tier[i] = Math.min(Math.max(reads.tier[i], 0), STORE);
  }
  for (let i = 0; i < gets.count; i++) gets.kind[i] = Math.min(Math.max(gets.kind[i], 0), KINDS.length - 1);
  Object.assign(start, extentOf(start));
  start.horizon = gets.decoded.reduce((last, time) => Math.max(last, time), start.ended);
  settle(gets, start.horizon);
  return start;
}

function filesOf(files) {
  // As the command line names what has no path: content of up to 64 bytes lies in the tree, and is no object.
  const labels = files.path.map((path, i) => shown(path) || (files.object[i] ? `object ${files.object[i]}` : "a tiny file"));
  return {
    count: files.path.length,
    path: [...files.path.map((path, i) => path || labels[i]), UNKNOWN],
    label: [...labels, UNKNOWN],
    size: new Float64Array([...files.size, 0]),
    profiled: new Int32Array([...files.profiled, 0]),
    fetched: new Float64Array([...files.fetched, -1]),
  };
}

/** Columns from what was sent, of which some are differences: from the row before, or from another column, which then comes first. */
function columns(sent, limits) {
  const made = { count: 0 };
  for (const [name, values] of Object.entries(sent)) {
    const column = new Float64Array(values);
    if (FROM_ROW_BEFORE.has(name)) for (let i = 1; i < column.length; i++) column[i] += column[i - 1];
    const other = made[FROM_COLUMN[name]];
    if (other) for (let i = 0; i < column.length; i++) column[i] += other[i];
    made[name] = column;
    made.count = column.length;
  }
  for (const [name, limit] of Object.entries(limits)) {
    if (!made[name]) continue;
    const column = new Int32Array(made[name]);
    for (let i = 0; i < column.length; i++) if (!(column[i] >= 0 && column[i] < limit)) column[i] = limit;
    made[name] = column;
  }
  return made;
}

/** A start goes from the first access to the last, as the command line has it: nothing happened before and after. */
function extentOf({ reads, opens }) {
  const firsts = [reads, opens].filter(({ count }) => count).map(({ t }) => t[0]);
  const begun = Math.max(0, firsts.length ? Math.min(...firsts) : 0);
  const opened = opens.count ? opens.t[opens.count - 1] : 0;
  const ended = reads.until.reduce((last, time) => Math.max(last, time), Math.max(begun + 1, opened));
  return { begun, ended, length: ended - begun };
}

/** Keep in mind which GETs came to which end, and put what has not come at the end of what is known. */
function settle(gets, horizon) {
  gets.isHere = Uint8Array.from(gets.arrived, (time) => (time === NEVER ? 0 : 1));
  gets.isDecoded = Uint8Array.from(gets.decoded, (time) => (time === NEVER ? 0 : 1));
  gets.isPromoted = Uint8Array.from(gets.promoted, (time) => (time === NEVER ? 0 : 1));
  for (const column of [gets.queued, gets.sent, gets.first, gets.arrived, gets.decoded]) {
    for (let i = 0; i < gets.count; i++) if (column[i] === NEVER) column[i] = horizon;
  }
}
