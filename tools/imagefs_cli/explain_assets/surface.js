/**
 * A canvas whose areas are written as pixels, and whose text is drawn over them.
 *
 * A hundred thousand rectangles are too many for a canvas's own calls in one frame, but few pixels. All coordinates here are device
 * pixels, whole numbers, clipped to the surface.
 */

/** Columns that are quicker written one by one than by a call a line. */
const FEW = 6;

export class Surface {
  constructor(canvas) {
    this.canvas = canvas;
    // No transparency, and pixels at hand: the browser keeps such a canvas in memory, where we write.
    this.context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
    this.width = this.height = 0;
  }

  /** Take a size in CSS pixels; `ratio` device pixels each. */
  resize(width, height, ratio) {
    const [w, h] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
    this.ratio = ratio;
    if (w === this.width && h === this.height) return;
    this.width = this.canvas.width = w;
    this.height = this.canvas.height = h;
    this.canvas.style.width = `${w / ratio}px`;
    this.canvas.style.height = `${h / ratio}px`;
    this.image = new ImageData(w, h);
    this.pixels = new Uint32Array(this.image.data.buffer);
  }

  clear(color) {
    this.pixels.fill(color);
  }

  fill(left, top, right, bottom, color) {
    const x0 = left > 0 ? left : 0;
    const x1 = right < this.width ? right : this.width;
    const y1 = bottom < this.height ? bottom : this.height;
    if (x1 <= x0) return;
    if (x1 - x0 <= FEW) {
      for (let x = x0; x < x1; x++) this.column(x, top, y1, color);
      return;
    }
    for (let y = top > 0 ? top : 0; y < y1; y++) this.pixels.fill(color, y * this.width + x0, y * this.width + x1);
  }

  /** One column of pixels: `fill`, where it is called for each column of each row. */
  column(x, top, bottom, color) {
    const end = (bottom < this.height ? bottom : this.height) * this.width;
    for (let at = (top > 0 ? top : 0) * this.width + x; at < end; at += this.width) this.pixels[at] = color;
  }

  /** Put the pixels on the canvas, and make its own calls count in CSS pixels. */
  show() {
    this.context.putImageData(this.image, 0, 0);
    this.context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
  }
}
