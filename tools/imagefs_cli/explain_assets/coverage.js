/**
 * How much of each column of pixels a lot of intervals cover, in one pass, whatever their number and their length.
 *
 * An interval adds its parts to the columns where it begins and ends, and a step up and down for those between; one running sum at the end
 * makes columns of it. `seen` tells which category was in a column at all: what is far shorter than a column must not vanish.
 */
export class Coverage {
  constructor(columns, categories) {
    this.columns = columns;
    this.categories = categories;
    this.values = new Float32Array(columns * categories);
    this.steps = new Float32Array((columns + 1) * categories);
    this.seen = new Uint8Array(columns);
  }

  clear() {
    this.values.fill(0);
    this.steps.fill(0);
    this.seen.fill(0);
  }

  /** Count [from, to), in columns, with a weight. Of several categories in a column, the highest is what is seen of it. */
  add(category, from, to, weight = 1) {
    const { columns } = this;
    if (to < 0 || from >= columns) return;
    const a = from > 0 ? from : 0;
    const b = to < columns ? to : columns;
    const first = a | 0;
    const last = b | 0;
    if (category >= this.seen[first]) this.seen[first] = category + 1;
    const base = category * columns;
    if (first === last) {
      this.values[base + first] += (b - a) * weight;
      return;
    }
    this.values[base + first] += (first + 1 - a) * weight;
    if (last < columns) this.values[base + last] += (b - last) * weight;
    const step = base + category;
    this.steps[step + first + 1] += weight;
    this.steps[step + last] -= weight;
  }

  /** Make columns of what was added; return them, category by category. */
  finish() {
    const { columns, values, steps, seen } = this;
    for (let category = 0; category < this.categories; category++) {
      const base = category * columns;
      let level = 0;
      for (let column = 0; column < columns; column++) {
        level += steps[base + category + column];
        if (level > 1e-6) {
          values[base + column] += level;
          if (category >= seen[column]) seen[column] = category + 1;
        }
      }
    }
    return values;
  }
}
