/**
 * Wheel, drag, click and keys: turned into what the page can do (`app`). Nothing here paints or keeps anything but the drag under way.
 *
 * The wheel scrolls rows and zooms with Ctrl or Alt (a pinch comes as Ctrl), on the axis and on the overview, or where there is nothing to
 * scroll. A drag moves; with Shift, on the axis and on the overview, it takes a stretch of time.
 */

import { byId } from "./dom.js";

const MOVED = 4; // pixels; less is a click
const NOTCH = 0.0015;

export function listen(app) {
  wheel(app);
  drag(app);
  overview(app);
  keys(app);
  divide();
}

function place(event, element) {
  const box = element.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

/** Lines and pages, which some mice send, as pixels. */
function pixels(event) {
  const unit = [1, 20, 400][event.deltaMode];
  return [event.deltaX * unit, event.deltaY * unit];
}

function wheel(app) {
  const chart = byId("chart");
  const turn = (event) => {
    const [x, y] = place(event, chart);
    let [across, down] = pixels(event);
    if (event.shiftKey && !across) [across, down] = [down, 0];
    const isScrollable = chart.scrollHeight > chart.clientHeight + 1;
    if (event.ctrlKey || event.altKey || event.metaKey || y < app.chart.axis || (!isScrollable && !across)) {
      event.preventDefault();
      app.view.zoom(Math.exp(down * NOTCH * (event.ctrlKey && Math.abs(down) < 30 ? 4 : 1)), app.chart.at(x, app.view).time);
    } else if (Math.abs(across) > Math.abs(down)) {
      event.preventDefault();
      app.view.pan(across / (app.chart.panes[0].right - app.chart.panes[0].left));
    }
  };
  chart.addEventListener("wheel", turn, { passive: false });
}

function drag(app) {
  const chart = byId("chart");
  let held = null;
  chart.addEventListener("pointerdown", (event) => {
    const [x, y] = place(event, chart);
    if (event.button !== 0 || x >= chart.clientWidth) return;
    const { which, time } = app.chart.at(x, app.view);
    const isStretch = which >= 0 && (event.shiftKey || y < app.chart.axis);
    held = { x, y, which, time, isStretch, from: app.view.from, scrolled: chart.scrollTop, isMoved: false };
    chart.setPointerCapture(event.pointerId);
  });
  chart.addEventListener("pointermove", (event) => {
    const [x, y] = place(event, chart);
    if (!held) return app.point(x, y);
    held.isMoved ||= Math.abs(x - held.x) > MOVED || Math.abs(y - held.y) > MOVED;
    if (!held.isMoved) return;
    if (held.isStretch) return app.showStretch(held.which, held.x, x);
    const moved = (x - held.x) * app.chart.scale(app.view);
    if (held.which >= 0) app.view.set(held.from - moved, held.from - moved + app.view.span);
    chart.scrollTop = held.scrolled - (y - held.y);
  });
  const release = (event) => {
    if (!held) return;
    const [x, y] = place(event, chart);
    const { isMoved, isStretch, which } = held;
    if (!isMoved) app.click(x, y);
    else if (isStretch) app.takeStretch(which, held.x, x);
    held = null;
  };
  chart.addEventListener("pointerup", release);
  chart.addEventListener("pointercancel", () => {
    held = null;
    app.hideStretch();
  });
  chart.addEventListener("pointerleave", () => app.point(-1, -1));
  chart.addEventListener("dblclick", (event) => app.frameAt(...place(event, chart)));
}

function overview(app) {
  const canvas = byId("overview");
  let begun = null;
  const time = (event) => app.overview.at(place(event, canvas)[0], app.view);
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    app.view.zoom(Math.exp(pixels(event)[1] * NOTCH), time(event));
  });
  canvas.addEventListener("pointerdown", (event) => {
    const at = time(event);
    // What is seen is taken by its middle and moved; anywhere else a new stretch begins.
    const isInside = !app.view.isWhole && at >= app.view.from && at <= app.view.to;
    begun = { at, x: event.clientX, offset: isInside ? at - app.view.from : null };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!begun) return;
    const at = time(event);
    if (begun.offset !== null) app.view.set(at - begun.offset, at - begun.offset + app.view.span);
    else if (Math.abs(event.clientX - begun.x) > MOVED) app.view.set(Math.min(at, begun.at), Math.max(at, begun.at));
  });
  canvas.addEventListener("pointerup", (event) => {
    const half = app.view.span / 2;
    const isClick = begun && begun.offset === null && Math.abs(event.clientX - begun.x) <= MOVED;
    if (isClick) app.view.set(begun.at - half, begun.at + half);
    begun = null;
  });
}

/** The line between the chart and the table is dragged, or moved by keys. */
function divide() {
  const line = byId("divide");
  const place = (height) => {
    const bounded = Math.min(Math.max(height, 40), window.innerHeight - 380);
    document.body.style.setProperty("--bottom", `${bounded}px`);
  };
  line.addEventListener("pointerdown", (event) => line.setPointerCapture(event.pointerId));
  line.addEventListener("pointermove", (event) => {
    if (line.hasPointerCapture(event.pointerId)) place(window.innerHeight - event.clientY - 5);
  });
  line.addEventListener("keydown", ({ key }) => {
    const height = byId("bottom").offsetHeight;
    if (key === "ArrowUp") place(height + 30);
    if (key === "ArrowDown") place(height - 30);
  });
}

function keys(app) {
  const chart = byId("chart");
  const bound = {
    ArrowLeft: () => app.view.pan(-0.15),
    ArrowRight: () => app.view.pan(0.15),
    a: () => app.view.pan(-0.15),
    d: () => app.view.pan(0.15),
    "+": () => app.view.zoom(1 / 1.5),
    "=": () => app.view.zoom(1 / 1.5),
    w: () => app.view.zoom(1 / 1.5),
    "-": () => app.view.zoom(1.5),
    s: () => app.view.zoom(1.5),
    0: () => app.view.reset(),
    Home: () => app.view.reset(),
    ArrowUp: () => app.moveCursor(-1),
    ArrowDown: () => app.moveCursor(1),
    PageUp: () => app.moveCursor(-12),
    PageDown: () => app.moveCursor(12),
    Enter: () => app.enter(),
    " ": () => app.enter(),
    "[": () => app.step(-1),
    "]": () => app.step(1),
    f: () => app.frameChosen(),
    Escape: () => app.choose(null),
  };
  chart.addEventListener("keydown", (event) => {
    const action = bound[event.key];
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    action();
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/") {
      event.preventDefault();
      byId("search").focus();
    } else if (event.key === "?") {
      byId("help").showModal();
    }
  });
}
