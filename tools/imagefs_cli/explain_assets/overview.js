/** The whole start on one strip, with what is seen of it in the chart: drawn once, then only its window moves. */

import { Bars } from "./bars.js";
import { Surface } from "./surface.js";

export class Overview {
  constructor(canvas, palette) {
    this.canvas = canvas;
    this.surface = new Surface(canvas);
    this.palette = palette;
  }

  /** Paint all waits of the events that are shown, each start below the one before. */
  paint({ starts, forest, view, colour }) {
    const { surface, canvas, palette } = this;
    surface.resize(canvas.parentElement.clientWidth, 22 + 22 * starts.length, window.devicePixelRatio || 1);
    surface.clear(palette.pixel.panel);
    const bars = new Bars(surface, palette, surface.width);
    const each = surface.height / starts.length;
    starts.forEach((start, which) => {
      const [top, bottom] = [Math.round(which * each), Math.round((which + 1) * each)];
      const x = (time) => Math.round(((time - view.begin) / (view.end - view.begin)) * surface.width);
      surface.fill(0, top, x(0), bottom, palette.pixel.beyond);
      surface.fill(x(start.length), top, surface.width, bottom, palette.pixel.beyond);
      const { reads, peak } = forest.events(forest.root, which);
      bars.waits(start.spans, reads, peak, colour, view.allOf(start), { left: 0, top: top + 3, bottom: bottom - 1 });
      surface.fill(0, bottom - 1, surface.width, bottom, palette.pixel.grid);
    });
  }

  draw({ view }) {
    const { surface, palette } = this;
    surface.show();
    const { context, ratio } = surface;
    const [width, height] = [surface.width / ratio, surface.height / ratio];
    const [left, right] = [view.from, view.to].map((time) => ((time - view.begin) / (view.end - view.begin)) * width);
    context.fillStyle = palette.css.back;
    context.globalAlpha = 0.72;
    context.fillRect(0, 0, left, height);
    context.fillRect(right, 0, width - right, height);
    context.globalAlpha = 1;
    context.strokeStyle = palette.css.accent;
    context.lineWidth = 1.5;
    if (!view.isWhole) context.strokeRect(left + 0.75, 0.75, Math.max(right - left - 1.5, 2), height - 1.5);
  }

  /** The view's time at a place. */
  at(x, view) {
    return view.begin + (x / (this.surface.width / this.surface.ratio)) * (view.end - view.begin);
  }
}
