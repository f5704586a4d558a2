/**
 * The stretch of time that is seen: one for both starts, so that they are compared on one scale.
 *
 * Its times are from the first access on, which starts that are compared have at the same place; those of events are from the mount on, of
 * which each start has its own.
 */

const NARROWEST = 20; // µs
const BEFORE = 0.05; // of the length: what is seen, at first, of the time between the mount and the first access
const AROUND = 10; // lengths before and after a start that can be seen: somebody may mount today and start tomorrow

export class View {
  /** Of these starts; `changed` is called after each change. */
  constructor(starts, changed) {
    const most = (value) => Math.max(...starts.map(value));
    const length = most((start) => start.length);
    this.begin = -Math.min(AROUND * length, most(({ begun }) => begun));
    this.wholeFrom = Math.max(this.begin, -BEFORE * length);
    this.wholeTo = length * 1.02;
    this.end = Math.max(this.wholeTo, Math.min(AROUND * length, most(({ horizon, begun }) => horizon - begun)));
    this.from = this.wholeFrom;
    this.to = this.wholeTo;
    this.changed = changed;
  }

  get span() {
    return this.to - this.from;
  }

  get isWhole() {
    return this.from === this.wholeFrom && this.to === this.wholeTo;
  }

  /** What is seen of a start, in its own time. */
  of({ begun, horizon }) {
    return { from: this.from + begun, to: this.to + begun, span: this.span, end: horizon };
  }

  /** All that there is of a start, likewise. */
  allOf({ begun, horizon }) {
    return { from: this.begin + begun, to: this.end + begun, span: this.end - this.begin, end: horizon };
  }

  set(from, to) {
    const span = Math.min(Math.max(to - from, NARROWEST), this.end - this.begin);
    this.from = Math.min(Math.max(from, this.begin), this.end - span);
    this.to = this.from + span;
    this.changed();
  }

  /** Show `factor` times as much, the time `at` staying where it is. */
  zoom(factor, at = (this.from + this.to) / 2) {
    const span = Math.min(Math.max(this.span * factor, NARROWEST), this.end - this.begin);
    const part = (at - this.from) / this.span;
    this.set(at - part * span, at + (1 - part) * span);
  }

  /** Move by a part of what is seen. */
  pan(part) {
    this.set(this.from + part * this.span, this.to + part * this.span);
  }

  reset() {
    this.set(this.wholeFrom, this.wholeTo);
  }

  /** Show [from, to] with room around it. */
  frame(from, to) {
    const room = Math.max((to - from) * 0.6, 50);
    this.set(from - room, to + room);
  }
}
