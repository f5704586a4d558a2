/**
 * The GETs of a start: on lanes, so that none hides another, and as the rate at which the link moved bytes.
 *
 * A lane is taken from the moment a GET is sent until it is decoded; its time in the queue before that is drawn as a thin line, over
 * whatever its lane did meanwhile.
 */

import { Coverage } from "./coverage.js";
import { KINDS } from "./data.js";

/** More than these at once share the last lane. */
const LANES_MAX = 48;
/** µs; what is said to have come in less is as much a figure of the clock as of the link. */
const SHORTEST = 500;
const BINS = 1000;

/** Return `{lane, kinds: [{list, lanes}], peak}`: the GETs of each kind in order of sending, and the highest rate (bytes a µs). */
export function lanesOf(start) {
  const { gets } = start;
  const inOrder = new Int32Array(gets.count).map((_, i) => i).sort((a, b) => gets.sent[a] - gets.sent[b]);
  const lane = new Int16Array(gets.count);
  const kinds = KINDS.map((_, kind) => {
    const list = inOrder.filter((i) => gets.kind[i] === kind);
    const free = new Float64Array(LANES_MAX);
    let lanes = 0;
    for (const i of list) {
      let at = 0;
      while (at < LANES_MAX - 1 && at < lanes && free[at] > gets.sent[i]) at += 1;
      free[at] = gets.decoded[i];
      lane[i] = at;
      lanes = Math.max(lanes, at + 1);
    }
    return { list, lanes };
  });
  return { lane, kinds, peak: peakRate(start) };
}

/** When a GET's bytes came, `[from, to]`: evenly from its first byte on; where that is not known, from when it was sent. */
export function transferOf(gets, i) {
  const to = gets.arrived[i];
  const from = gets.first[i] < to ? gets.first[i] : gets.sent[i];
  return [from, Math.max(to, from + SHORTEST)];
}

/** The highest rate (bytes a µs), as it looks when all of the start is seen. */
function peakRate({ gets, horizon }) {
  const bins = new Coverage(BINS, 1);
  const scale = BINS / horizon;
  for (let i = 0; i < gets.count; i++) {
    if (!gets.isHere[i]) continue;
    const [from, to] = transferOf(gets, i);
    bins.add(0, from * scale, to * scale, (gets.end[i] - gets.start[i]) / (to - from));
  }
  return bins.finish().reduce((most, rate) => Math.max(most, rate), 0);
}
