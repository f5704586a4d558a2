/**
 * Begins: unpacks the data, makes the page, connects its controls, and gives tests something to hold on to.
 *
 * `window.imagefsExplain` is that: `ready` (a promise), `opened` (milliseconds from the navigation to the first frame that was painted),
 * `app`, `visible()` (the rows in sight: label, type, where they are in the chart, and what they come to in each start), and
 * `measure(frames)`, which zooms and pans for so many frames and tells for each how long the drawing took and how long it was until the
 * next frame.
 */

import { App } from "./app.js";
import { unpack } from "./data.js";
import { byId } from "./dom.js";
import { listen } from "./input.js";
import { showSummary } from "./summary.js";
import { measure } from "./waits.js";

const THEMES = ["system", "light", "dark"];
const TYPING = 120; // ms without a key, after which is searched

const hook = { app: null, opened: 0 };
hook.ready = begin();
window.imagefsExplain = hook;

async function begin() {
  try {
    const starts = await unpack(byId("data").textContent.trim());
    starts.forEach(measure);
    showSummary(starts);
    document.body.classList.toggle("compared", starts.length > 1);
    const app = new App(starts);
    hook.app = app;
    connect(app);
    app.resize();
    await nextFrame();
    await nextFrame();
    hook.opened = performance.now();
    byId("loading").hidden = true;
  } catch (error) {
    byId("loading").textContent = `This page could not be shown: ${error.message}`;
    throw error;
  }
}

function connect(app) {
  listen(app);
  const chart = byId("chart");
  chart.addEventListener("scroll", () => app.changed(), { passive: true });
  new ResizeObserver(() => app.resize()).observe(chart);
  let typing = 0;
  byId("search").addEventListener("input", ({ target }) => {
    clearTimeout(typing);
    typing = setTimeout(() => app.search(target.value), TYPING);
  });
  byId("search").addEventListener("keydown", ({ key, target }) => {
    if (key === "Escape") target.value = "";
    if (key !== "Escape" && key !== "Enter") return;
    clearTimeout(typing);
    app.search(target.value);
    chart.focus();
  });
  for (const choice of document.querySelectorAll("input[name=group]")) choice.addEventListener("change", () => app.group(choice.value));
  byId("inview").addEventListener("change", ({ target }) => app.onlyInView(target.checked));
  byId("order").addEventListener("change", ({ target }) => app.sort(target.value));
  byId("colour").addEventListener("change", ({ target }) => app.paintBy(target.value));
  const buttons = {
    in: () => app.view.zoom(1 / 1.6),
    out: () => app.view.zoom(1.6),
    reset: () => app.view.reset(),
    expand: () => app.setAllOpen(true),
    collapse: () => app.setAllOpen(false),
    keys: () => byId("help").showModal(),
    theme: () => nextTheme(app),
  };
  for (const [id, action] of Object.entries(buttons)) byId(id).addEventListener("click", action);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => app.recolour());
  app.showLegend();
}

function nextTheme(app) {
  const root = document.documentElement;
  const theme = THEMES[(THEMES.indexOf(root.dataset.theme ?? "system") + 1) % THEMES.length];
  root.dataset.theme = theme;
  byId("theme").textContent = `Theme: ${theme}`;
  app.recolour();
}

const nextFrame = () => new Promise((resolve) => requestAnimationFrame(resolve));

hook.visible = () => {
  const { app } = hook;
  const scrolled = byId("chart").scrollTop;
  return app.layout.rows
    .map((row) => ({
      label: row.node ? row.node.label : row.key,
      type: row.type,
      depth: row.depth,
      isOpen: app.open.has(row.key),
      top: row.top - scrolled + app.chart.axis,
      height: row.height,
      totals: row.node ? row.node.totals : [],
    }))
    .filter(({ top, height }) => top + height > app.chart.axis && top < app.chart.height);
};

hook.measure = async (frames) => {
  const { view, draws } = hook.app;
  const found = { draw: [], frame: [] };
  for (let frame = 0; frame < frames; frame++) {
    const began = performance.now();
    if (frame % 3 === 2) view.pan(0.03);
    else view.zoom(frame < frames / 2 ? 0.95 : 1 / 0.95);
    await nextFrame();
    found.draw.push(draws.at(-1));
    found.frame.push(performance.now() - began);
  }
  return found;
};
