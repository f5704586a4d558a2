/** Which rows the chart has, where they lie, and what is at a place of one. Heights and places are CSS pixels, from the first row's top. */

import { KINDS } from "./data.js";

export const HEIGHTS = { path: 30, link: 44, group: 28, file: 18, lane: 7 };
const LANE_ROOM = 9;
export const KIND_LABELS = ["GETs waited for", "GETs of the profile", "GETs fetched along", "GETs read ahead"];

/**
 * The critical path and the link first, then the forest, all of it or what has events in view. `open` has the key "link" if the GETs are to
 * be seen one by one.
 */
export function rowsOf({ starts, forest, lanes, open, view, isInView }) {
  const rows = [];
  if (starts.some(({ path }) => path)) rows.push({ type: "path", key: "path", depth: 0, height: HEIGHTS.path });
  if (lanes.some(({ kinds }) => kinds.some(({ list }) => list.length))) {
    rows.push({ type: "link", key: "link", depth: 0, height: HEIGHTS.link });
    if (open.has("link")) {
      KINDS.forEach((_, kind) => {
        const most = Math.max(...lanes.map(({ kinds }) => kinds[kind].lanes));
        if (most) rows.push({ type: "kind", key: `link/${kind}`, depth: 1, kind, height: Math.max(20, most * HEIGHTS.lane + LANE_ROOM) });
      });
    }
  }
  for (const { node, depth } of forest.rows(open, isInView ? view : null)) {
    const type = node.file < 0 ? "group" : "file";
    rows.push({ type, key: node.key, depth, node, height: HEIGHTS[type] });
  }
  let top = 0;
  for (const row of rows) {
    row.top = top;
    top += row.height;
  }
  return { rows, height: top };
}

/** The number of the row at a height, -1 if there is none. */
export function rowAt({ rows, height }, y) {
  if (y < 0 || y >= height) return -1;
  let low = 0;
  let high = rows.length;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (rows[middle].top <= y) low = middle;
    else high = middle;
  }
  return low;
}

/**
 * What is at a time of a row of a start, within `near` µs: `{type: "read" | "open" | "get", which, index}`, or null. Where several are,
 * that which lasts longest.
 */
export function pick(model, row, which, time, y, near) {
  if (row.type === "kind") {
    const lane = Math.floor((y - LANE_ROOM / 2) / HEIGHTS.lane);
    return pickGet(model, which, model.lanes[which].kinds[row.kind].list, time, near, lane);
  }
  const start = model.starts[which];
  if (row.type === "link") return pickGet(model, which, start.gets.queued.keys(), time, near, -1);
  if (row.type === "path") return pickStep(start, which, time, near);
  const events = model.forest.events(row.node, which);
  let best = null;
  let most = -1;
  for (const index of events.reads) {
    const t = start.reads.t[index];
    if (t > time + near) break;
    if (start.reads.until[index] < time - near || start.reads.wait[index] <= most) continue;
    most = start.reads.wait[index];
    best = { type: "read", which, index };
  }
  if (best) return best;
  let distance = near;
  for (const index of events.opens) {
    const apart = Math.abs(start.opens.t[index] - time);
    if (apart > distance) continue;
    distance = apart;
    best = { type: "open", which, index };
  }
  return best;
}

function pickStep({ path }, which, time, near) {
  let best = null;
  let least = Infinity;
  for (let i = 0; path && i < path.count && path.begin[i] <= time + near; i++) {
    const apart = Math.max(0, path.begin[i] - time, time - path.end[i]);
    if (apart > near || apart >= least) continue;
    least = apart;
    best = { type: "read", which, index: path.read[i] };
  }
  return best;
}

function pickGet(model, which, list, time, near, lane) {
  const { gets } = model.starts[which];
  let best = null;
  let most = -1;
  for (const index of list) {
    if (lane >= 0 && model.lanes[which].lane[index] !== lane) continue;
    if (gets.queued[index] > time + near || gets.decoded[index] < time - near) continue;
    // What moves bytes at this time is meant rather than what waits in the queue.
    const weight = gets.sent[index] <= time ? 1e12 - (gets.decoded[index] - gets.sent[index]) : 0;
    if (weight <= most) continue;
    most = weight;
    best = { type: "get", which, index };
  }
  return best;
}
