/**
 * What readers waited for, and the sums that are shown of it: by the same rules as the command line's own (`imagefs_cli.explain`).
 *
 * A read that waited for a GET went through that GET's stages, as far as they fall into its wait: until it was queued (the daemon's own),
 * until it was sent (queue), until its first byte (first), until its last one (transfer), and until its content was decoded and verified,
 * as much as those took of CPU time; the rest, up to the answer, is the daemon's own again. A read from SSD waited for the disk. Stages
 * follow one another, so each wait keeps where they end, and its parts always add up to it.
 */

import { DEMAND, KINDS, PROFILE, RAM, SSD, STORE, TIERS } from "./data.js";

export const PHASES = ["queue", "first", "transfer", "decode", "verify", "disk", "daemon"];
const [DISK, DAEMON] = [5, 6];
export const STAGES = 7;
const CUTS = STAGES - 1;

/** What became of reads by the profile: the names are the command line's. */
export const HELP = ["not needed", "in time", "late", "not fetched", "not in it", "no profile"];

/** Waits, of whole reads or of their parts: `{count, begin, end, read, tier, cuts, longest}`, in order of time. */
function spansOf({ reads, gets }, begin, end, read) {
  const count = begin.length;
  const spans = { count, begin, end, read, tier: new Uint8Array(count), cuts: new Float64Array(count * CUTS), longest: 0 };
  for (let i = 0; i < count; i++) {
    const get = reads.get[read[i]];
    spans.tier[i] = reads.tier[read[i]];
    spans.longest = Math.max(spans.longest, end[i] - begin[i]);
    if (spans.tier[i] === STORE && get >= 0) cut(gets, get, begin[i], end[i], spans.cuts, i * CUTS);
    else spans.cuts.fill(begin[i], i * CUTS, i * CUTS + CUTS);
  }
  return spans;
}

/** Write where the stages of a wait for a GET end. */
function cut(gets, get, begin, end, cuts, to) {
  let at = begin;
  [gets.queued, gets.sent, gets.first, gets.arrived].forEach((moments, stage) => {
    at = Math.min(end, Math.max(moments[get], at));
    cuts[to + stage] = at;
  });
  const coded = Math.min(end, Math.max(gets.decoded[get], at)) - at;
  const cpu = gets.decodeCpu[get] + gets.verifyCpu[get];
  const isWhole = gets.isDecoded[get] && gets.isHere[get] && gets.decoded[get] >= gets.arrived[get];
  const whole = isWhole ? Math.max(cpu, gets.decoded[get] - gets.arrived[get]) : cpu;
  cuts[to + 4] = at + (cpu ? (coded * gets.decodeCpu[get]) / whole : 0);
  cuts[to + 5] = cuts[to + 4] + (cpu ? (coded * gets.verifyCpu[get]) / whole : 0);
}

export function stageEnd(spans, i, stage) {
  return stage < CUTS ? spans.cuts[i * CUTS + stage] : spans.end[i];
}

/** Which of `PHASES` a stage of a wait is. */
export function phaseOf(spans, i, stage) {
  if (stage === 0) return DAEMON;
  if (stage < CUTS) return stage - 1;
  return spans.tier[i] === SSD ? DISK : DAEMON;
}

/** The time of a wait, by phase. */
export function phasesOf(spans, i) {
  const found = PHASES.map(() => 0);
  addPhases(found, spans, i);
  return found;
}

function addPhases(sums, spans, i) {
  let at = spans.begin[i];
  for (let stage = 0; stage < STAGES; stage++) {
    const end = stageEnd(spans, i, stage);
    sums[phaseOf(spans, i, stage)] += end - at;
    at = end;
  }
}

/** Add to a start what is shown of it as a whole and by file. `path`, if it is known, is the critical path's waits. */
export function measure(start) {
  const { reads, path } = start;
  start.spans = spansOf(start, reads.t, reads.until, new Int32Array(reads.count).map((_, i) => i));
  start.onPath = new Float64Array(reads.count);
  if (path) {
    start.path = spansOf(start, path.from, path.until, path.read);
    path.read.forEach((read, i) => (start.onPath[read] += path.until[i] - path.from[i]));
  }
  start.isStreamed = start.gets.kind.includes(PROFILE);
  start.byFile = byFile(start);
  start.sums = sums(start);
}

/** What a profile did for a read, or would have done: an index of `HELP`. */
export function helped({ reads, files, gets, head, isStreamed }, read) {
  const isProfiled = files.profiled[reads.file[read]] > 0;
  const get = reads.get[read];
  if (reads.tier[read] !== STORE) return isStreamed && isProfiled && reads.tier[read] >= RAM ? 1 : 0;
  if (get >= 0 && gets.kind[get] === PROFILE) return 2;
  if (!head.profile) return 5;
  return isProfiled ? 3 : 4;
}

function sums(start) {
  const { reads, gets, files, spans, path, length } = start;
  const found = { wait: 0, store: 0, fetched: 0, moved: 0, touched: 0, used: 0, ahead: 0, retried: 0, program: null };
  found.phases = PHASES.map(() => 0);
  found.tiers = TIERS.map(() => 0);
  found.help = HELP.map(() => 0);
  found.kinds = KINDS.map(() => ({ gets: 0, moved: 0 }));
  for (let i = 0; i < reads.count; i++) {
    found.wait += reads.wait[i];
    found.store += reads.tier[i] === STORE ? 1 : 0;
    found.tiers[reads.tier[i]] += reads.end[i] - reads.start[i];
    found.help[helped(start, i)] += 1;
  }
  const counted = path ? start.path : spans;
  for (let i = 0; i < counted.count; i++) addPhases(found.phases, counted, i);
  if (path) found.program = Math.max(0, length - found.phases.reduce((sum, time) => sum + time, 0));
  for (let i = 0; i < gets.count; i++) {
    const kind = found.kinds[gets.kind[i]];
    kind.gets += 1;
    found.retried += gets.attempts[i] > 1 ? 1 : 0;
    if (!gets.isHere[i]) continue;
    kind.moved += gets.end[i] - gets.start[i];
    found.moved += gets.end[i] - gets.start[i];
    found.fetched += gets.content[i];
    if (gets.kind[i] !== DEMAND) found.ahead += gets.content[i];
  }
  let isKnown = false;
  for (let file = 0; file < files.count; file++) {
    found.touched += start.byFile.touched[file];
    isKnown ||= files.fetched[file] >= 0;
    found.used += Math.min(start.byFile.touched[file], Math.max(0, files.fetched[file]));
  }
  // Where nobody has looked what GETs brought of each file, what was touched may all have come of them.
  if (!isKnown) found.used = Math.min(found.touched, found.fetched);
  return found;
}

/** By file of a start: what is in the table of the slowest. */
function byFile(start) {
  const { files, reads, opens } = start;
  const size = files.count + 1;
  const found = {
    wait: new Float64Array(size),
    path: new Float64Array(size),
    longest: new Float64Array(size),
    first: new Float64Array(size).fill(Infinity),
    reads: new Int32Array(size),
    opens: new Int32Array(size),
    tiers: TIERS.map(() => new Float64Array(size)),
    touched: touchedOf(start),
  };
  for (let i = 0; i < reads.count; i++) {
    const file = reads.file[i];
    found.wait[file] += reads.wait[i];
    found.path[file] += start.onPath[i];
    found.longest[file] = Math.max(found.longest[file], reads.wait[i]);
    found.first[file] = Math.min(found.first[file], reads.t[i]);
    found.reads[file] += 1;
    found.tiers[reads.tier[i]][file] += start.path ? start.onPath[i] : reads.wait[i];
  }
  for (let i = 0; i < opens.count; i++) {
    found.first[opens.file[i]] = Math.min(found.first[opens.file[i]], opens.t[i]);
    found.opens[opens.file[i]] += 1;
  }
  return found;
}

/** How many bytes of each file were used: of what is said to be touched and of what was read, each byte once. */
function touchedOf({ files, reads, touched }) {
  const count = reads.count + touched.count;
  const file = new Int32Array(count);
  const from = new Float64Array(count);
  const to = new Float64Array(count);
  let last = 0;
  for (const events of [reads, touched]) {
    file.set(events.file, last);
    from.set(events.start, last);
    to.set(events.end, last);
    last += events.count;
  }
  const order = new Int32Array(count).map((_, i) => i).sort((a, b) => file[a] - file[b] || from[a] - from[b]);
  const found = new Float64Array(files.count + 1);
  let until = 0;
  order.forEach((i, at) => {
    if (at && file[i] !== file[order[at - 1]]) until = 0;
    const end = Math.min(to[i], files.size[file[i]]);
    found[file[i]] += Math.max(0, end - Math.max(from[i], until));
    until = Math.max(until, end);
  });
  return found;
}
