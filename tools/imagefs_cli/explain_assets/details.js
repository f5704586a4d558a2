/** What is known of one thing in the chart: in short beside the pointer, in full in its panel. */

import { KINDS, TIERS } from "./data.js";
import { bar, element, named, swatch } from "./dom.js";
import { KIND_NAMES, PHASE_NAMES, TIER_NAMES } from "./summary.js";
import { bytes, count, difference, duration, many, share } from "./units.js";
import { HELP, PHASES, helped, phasesOf } from "./waits.js";

/** Return `{title, facts: [[name, value]], phases}` of `{type, which, index}`, or of a row: `{type: "row", row}`. */
export function describe(model, item) {
  if (item.type === "row") return describeRow(model, item.row);
  const start = model.starts[item.which];
  const prefix = model.starts.length > 1 ? `${start.name}  ` : "";
  if (item.type === "get") return describeGet(start, item.index, prefix);
  return item.type === "read" ? describeRead(start, item.index, prefix) : describeOpen(start, item.index, prefix);
}

function describeRead(start, index, prefix) {
  const { reads, files, processes, byFile, gets } = start;
  const file = reads.file[index];
  const tier = TIERS[reads.tier[index]];
  const facts = [
    ["at", `${duration(reads.t[index])} after the mount`],
    ["waited", `${duration(reads.wait[index])}${start.path ? `, ${onPath(start.onPath[index])}` : ""}`],
    ["from", TIER_NAMES[tier], tier],
    ["asked by", who(processes, reads.process[index])],
    ["range", `${count(reads.start[index])} – ${count(reads.end[index])} (${bytes(reads.end[index] - reads.start[index])})`],
  ];
  const get = reads.get[index];
  if (get >= 0) {
    const kind = KINDS[gets.kind[get]];
    facts.push(["its GET", `${KIND_NAMES[kind]}; sent ${relative(gets.sent[get] - reads.t[index])}, ${sizeOf(gets, get)}`, kind]);
  }
  facts.push(
    ["file", `${bytes(files.size[file])}, ${bytes(byFile.touched[file])} of it touched`],
    ["profile", start.head.profile ? `${HELP[helped(start, index)]}; ${profiled(start, file)}` : profiled(start, file)],
  );
  return { title: prefix + files.label[file], facts, phases: phasesOf(start.spans, index) };
}

function describeOpen(start, index, prefix) {
  const { opens, files, processes, byFile } = start;
  const file = opens.file[index];
  return {
    title: prefix + files.label[file],
    facts: [
      ["opened at", duration(opens.t[index])],
      ["by", who(processes, opens.process[index])],
      ["served by", opens.native[index] ? "the kernel alone: it is complete on SSD" : "the daemon"],
      ["file", `${bytes(files.size[file])}, ${bytes(byFile.touched[file])} of it touched`],
      ["profile", profiled(start, file)],
    ],
  };
}

function describeGet(start, index, prefix) {
  const { gets, reads, packs } = start;
  const kind = KINDS[gets.kind[index]];
  let waiting = 0;
  for (let read = 0; read < reads.count; read++) if (reads.get[read] === index) waiting += 1;
  const promoted = gets.isPromoted[index] ? `; a reader came to wait for it at ${duration(gets.promoted[index])}` : "";
  const cpu = `CPU time ${duration(gets.decodeCpu[index])} to decode, ${duration(gets.verifyCpu[index])} to verify`;
  return {
    title: `${prefix}GET ${index}`,
    facts: [
      ["why", `${KIND_NAMES[kind]}${promoted}`, kind],
      ["asked for at", duration(gets.queued[index])],
      ["in the queue", duration(gets.sent[index] - gets.queued[index])],
      ...(gets.isHere[index]
        ? [
            ["first byte", `after ${duration(gets.first[index] - gets.sent[index])}`],
            ["transfer", duration(gets.arrived[index] - gets.first[index])],
          ]
        : [["under way", "its bytes had not come when this was written"]]),
      ...(gets.isDecoded[index] ? [["decoded", `${duration(gets.decoded[index] - gets.arrived[index])} later; ${cpu}`]] : []),
      ["moved", sizeOf(gets, index)],
      ["pack", `${packs[gets.pack[index]] ?? "(not known)"} ${count(gets.start[index])} – ${count(gets.end[index])}`],
      ["waited for by", waiting ? many(waiting, "read") : "nobody"],
      ...(gets.attempts[index] > 1 ? [["attempts", count(gets.attempts[index])]] : []),
    ],
  };
}

function describeRow(model, row) {
  if (row.type === "path") return describePath(model);
  if (!row.node) {
    const facts = model.starts.flatMap(({ name, sums }) => {
      const prefix = model.starts.length > 1 ? `${name}: ` : "";
      const title = (kind) => prefix + KIND_NAMES[KINDS[kind]];
      return sums.kinds.map(({ gets, moved }, kind) => [title(kind), `${many(gets, "GET")}, ${bytes(moved)}`, KINDS[kind]]);
    });
    return { title: "Link", facts };
  }
  const { node } = row;
  const facts = model.starts.flatMap(({ name }, which) => {
    const total = node.totals[which];
    const prefix = model.starts.length > 1 ? `${name}: ` : "";
    if (!total.reads && !total.opens) return [[`${prefix}never accessed`, ""]];
    return [
      ...(model.measure === "path" ? [[`${prefix}on the path`, duration(total.path)]] : []),
      [`${prefix}waited`, `${duration(total.wait)} in ${many(total.reads, "read")}, at most ${duration(total.longest)}`],
      [`${prefix}opened`, `${many(total.opens, "time")}; first accessed at ${duration(total.first)}`],
    ];
  });
  if (node.totals.length > 1) facts.push(["A − B", difference(node.totals[0][model.measure] - node.totals[1][model.measure])]);
  if (node.file < 0) return { title: `${node.label} (${many(node.fileCount, "file")})`, facts };
  model.starts.forEach((start, which) => {
    const file = model.union.files[which].indexOf(node.file);
    if (file < 0) return;
    const prefix = model.starts.length > 1 ? `${start.name}: ` : "";
    const { files, byFile } = start;
    const touched = `${bytes(byFile.touched[file])} of ${bytes(files.size[file])} (${share(byFile.touched[file], files.size[file])})`;
    facts.push([`${prefix}touched`, touched], [`${prefix}profile`, profiled(start, file)]);
  });
  return { title: model.union.labels[node.file], facts };
}

/** What the lengths of the starts consist of. */
function describePath({ starts }) {
  const told = starts.filter(({ path }) => path);
  const each = (value) => told.map(value).join(" | ");
  const facts = [
    [told.length > 1 ? "length, A | B" : "length", each(({ length }) => duration(length))],
    ["program", each(({ sums }) => duration(sums.program)), "program"],
    ...PHASES.map((phase, at) => [PHASE_NAMES[phase], each(({ sums }) => duration(sums.phases[at])), phase]),
    ["waits", `${each(({ path }) => count(path.count))}, one after the other`],
  ];
  return { title: "Critical path: what the length consists of", facts };
}

function who(processes, index) {
  const { label, pid, parent } = processes[index];
  const under = processes[parent];
  return `${label} (${pid})${under ? `, started by ${under.label} (${under.pid})` : ""}`;
}

function onPath(time) {
  return time > 0 ? `${duration(time)} of it on the critical path` : "not on the critical path";
}

function profiled({ head, files }, file) {
  const part = files.profiled[file];
  if (part > 0) return `touched by ${share(part, 65535)} of earlier starts`;
  return head.profile ? "not in it" : "there was none";
}

function relative(time) {
  return time < 0 ? `${duration(-time)} before` : `${duration(time)} after it was asked`;
}

function sizeOf(gets, index) {
  return `${bytes(gets.end[index] - gets.start[index])} for ${bytes(gets.content[index])} of content`;
}

/** As elements: `facts` at most so many. */
export function shownAs({ title, facts, phases }, most = Infinity) {
  const made = [element("h3", {}, title)];
  if (phases?.some((time) => time > 0)) {
    const parts = phases.map((value, at) => ({ color: PHASES[at], label: PHASE_NAMES[PHASES[at]], value, text: duration(value) }));
    const whole = phases.reduce((sum, time) => sum + time, 0);
    const seen = parts.filter(({ value }) => value >= 0.5).map(({ color, label, text }) => named(color, label, text));
    made.push(bar(parts, whole), element("ul", { class: "legend" }, ...seen));
  }
  const list = element("dl", {});
  for (const [name, value, color] of facts.slice(0, most)) {
    list.append(element("dt", {}, name), element("dd", {}, color ? swatch(color) : null, value));
  }
  made.push(list);
  return made;
}
