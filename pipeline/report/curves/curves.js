// The curves of #curves-data drawn with uPlot in the page's colours (theme.js); all of them share axis and zoom.
"use strict";

// ---- What is drawn.

const { figures, runs } = JSON.parse(document.getElementById("curves-data").textContent);
const places = [...document.querySelectorAll("[data-figure]")];
const shown = runs.map(() => true);
const logAxis = figures.map((figure) => figure.log);
const charts = figures.map(() => null); // built when they come into view
let axis = "samples";
let smoothing = 0;
let zoom = null; // [from, to] on the axis, or all of it

// Samples seen -> the axis, between the known points of a run's clock.
function alongAxis(run, samples) {
  if (axis === "samples") return samples;
  const known = runs[run].clock.samples;
  const values = runs[run].clock[axis];
  if (!values.length) return null;
  let i = 1;
  return samples.map((at) => {
    while (i < known.length - 1 && known[i] < at) i += 1;
    const width = known[i] - known[i - 1];
    return values[i - 1] + (width ? (at - known[i - 1]) / width : 1) * (values[i] - values[i - 1]);
  });
}

// Exponential mean without the pull of a start at 0; gaps stay gaps.
function smooth(values) {
  if (!smoothing) return values;
  let mean = 0;
  let weight = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = smoothing * mean + (1 - smoothing) * value;
    weight = smoothing * weight + (1 - smoothing);
    return mean / weight;
  });
}

function drawable(figure) {
  return figure.series
    .map(({ run, samples, x, y, low, high }) => ({
      run, x: alongAxis(run, x.map((at) => at * samples)), y: smooth(y), edges: low ? [smooth(high), smooth(low)] : [],
    }))
    .filter((one) => one.x !== null);
}

const SIZES = [[1e9, "G"], [1e6, "M"], [1e3, "k"]];
function short(value) {
  const [size, unit] = SIZES.find(([limit]) => Math.abs(value) >= limit) || [1, ""];
  return `${+(value / size).toPrecision(4)}${unit}`;
}
const number = (value) => (Math.abs(value) >= 1e4 ? short(value) : String(+value.toPrecision(4)));

// ---- One chart.

function build(i) {
  const place = places[i];
  const curves = drawable(figures[i]);
  destroy(i);
  if (!curves.length) {
    place.textContent = "Not known over this axis.";
    return;
  }
  place.textContent = "";
  const banded = curves.filter((one) => one.edges.length);
  const edges = banded.flatMap(({ run, x, edges: both }) => both.map((y) => ({ run, x, y }))); // drawn by their band only
  const line = colour("--line");
  const ink = colour("--muted");
  const side = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, font: "12px system-ui" };
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  const options = {
    ...size(place),
    legend: { show: false },
    padding: [8, 12, 0, 0],
    scales: { x: { time: false }, y: { distr: logAxis[i] ? 3 : 1 } },
    axes: [
      { ...side, size: 30, values: (u, splits) => splits.map((v) => (v === null ? "" : short(v))) },
      { ...side, size: (u, labels) => 22 + 7 * Math.max(3, ...(labels || []).map((l) => l.length)), values: (u, splits) => splits.map((v) => (v === null ? "" : number(v))) },
    ],
    series: [{}, ...curves.map(({ run, y }) => ({
      stroke: colour(runs[run].colour),
      dash: runs[run].dash,
      width: runs.length > 12 ? 1.1 : 1.75,
      show: shown[run],
      points: { show: y.length < 2 },
    })), ...edges.map(({ run }) => ({ show: shown[run], points: { show: false } }))],
    bands: banded.map(({ run }, k) => ({
      series: [curves.length + 2 * k + 1, curves.length + 2 * k + 2],
      fill: colour(runs[run].colour).replace("rgb", "rgba").replace(")", ", 0.18)"),
    })),
    focus: { alpha: runs.length > 1 ? 0.25 : 1 },
    cursor: {
      focus: { prox: 24, dist: (u, s, at, value, cursor) => (s > curves.length ? Infinity : value - cursor) },
      drag: { x: true, y: false },
      points: { size: (u, s) => (s > curves.length ? 0 : 7) },
      dataIdx: (u, s, at) => nearest(u.data[s], at),
      bind: { dblclick: () => () => setZoom(null) },
    },
    hooks: {
      setCursor: [(u) => tell(u, i, curves, tip)],
      setSelect: [(u) => {
        if (u.select.width > 4) setZoom([u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")]);
      }],
    },
  };
  if (zoom) options.scales.x = { time: false, min: zoom[0], max: zoom[1], range: (u, min, max) => [min, max] };
  const data = uPlot.join([...curves, ...edges].map(({ x, y }) => [x, logAxis[i] ? y.map((v) => (v > 0 ? v : null)) : y]));
  charts[i] = new uPlot(options, data, place);
  charts[i].over.append(tip);
  charts[i].runs = [...curves, ...edges].map(({ run }) => run);
  if (zoom) charts[i].setScale("x", { min: zoom[0], max: zoom[1] });
}

// Paper has no script that could fit a chart to it: two of these fit beside each other on A4 and on Letter.
function size(place) {
  return "paper" in root.dataset ? { width: 290, height: 180 } : { width: place.clientWidth, height: place.clientHeight };
}

function destroy(i) {
  if (charts[i]) charts[i].destroy();
  charts[i] = null;
}

// Runs log at different steps: the value of a curve nearest to place `at`.
function nearest(values, at) {
  for (let off = 0; off < values.length; off += 1) {
    if (values[at - off] != null) return at - off;
    if (values[at + off] != null) return at + off;
  }
  return at;
}

const MOST_TOLD = 12;

// What the curves are under the cursor, for the eye and for a screen reader.
function tell(u, i, curves, tip) {
  const { left, top, idx } = u.cursor;
  tip.hidden = left < 0 || idx === null;
  if (tip.hidden) return;
  const rows = curves
    .map(({ run }, s) => ({ run, value: u.data[s + 1][nearest(u.data[s + 1], idx)] }))
    .filter(({ run, value }) => shown[run] && value != null)
    .sort((a, b) => b.value - a.value);
  const head = document.createElement("div");
  head.textContent = `${short(u.data[0][idx])} ${axis.replace("gpu_", "GPU-").replace("cpu_", "CPU-")}`;
  tip.replaceChildren(head, ...rows.slice(0, MOST_TOLD).map(({ run, value }) => entry(run, number(value))));
  if (rows.length > MOST_TOLD) {
    const rest = document.createElement("div");
    rest.textContent = `and ${rows.length - MOST_TOLD} more`;
    tip.append(rest);
  }
  const width = u.over.clientWidth;
  tip.style.left = left < width / 2 ? `${left + 14}px` : "auto";
  tip.style.right = left < width / 2 ? "auto" : `${width - left + 14}px`;
  tip.style.top = `${Math.max(0, Math.min(top, u.over.clientHeight - tip.offsetHeight))}px`;
  if (document.activeElement === places[i]) {
    const words = rows.slice(0, MOST_TOLD).map(({ run, value }) => `${runs[run].name} ${number(value)}`);
    document.querySelector(`[data-said="${i}"]`).textContent = `${head.textContent}: ${words.join(", ")}`;
  }
}

function entry(run, value) {
  const row = document.createElement("div");
  const name = document.createElement("span");
  const told = document.createElement("b");
  name.textContent = runs[run].name;
  told.textContent = value;
  row.append(document.querySelector(`[data-run="${run}"]`).parentElement.querySelector("svg").cloneNode(true), name, told);
  return row;
}

// ---- All charts.

function redraw() {
  charts.forEach((chart, i) => chart && build(i));
}

function setZoom(range) {
  zoom = range;
  redraw();
}

function setShown(run, on) {
  shown[run] = on;
  document.querySelector(`[data-run="${run}"]`).checked = on;
  for (const chart of charts) {
    if (chart) chart.runs.forEach((of, at) => of === run && chart.setSeries(at + 1, { show: on }));
  }
  for (const button of document.querySelectorAll("[data-group]")) {
    const members = runs.map((_, r) => r).filter((r) => runs[r].group === Number(button.dataset.group));
    button.setAttribute("aria-pressed", String(members.some((r) => shown[r])));
  }
}

function onKey(event, i) {
  const u = charts[i];
  if (!u || event.ctrlKey || event.metaKey || event.altKey) return;
  const { min, max } = u.scales.x;
  const width = max - min;
  const middle = u.cursor.idx === null ? (min + max) / 2 : u.data[0][u.cursor.idx];
  const zoomed = (factor) => setZoom([middle - (factor * width) / 2, middle + (factor * width) / 2]);
  const keys = {
    ArrowLeft: () => step(u, -1), ArrowRight: () => step(u, 1), Escape: () => u.setCursor({ left: -10, top: -10 }),
    "+": () => zoomed(0.5), "=": () => zoomed(0.5), "-": () => zoomed(2), 0: () => setZoom(null),
  };
  if (!keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
}

function step(u, by) {
  const inside = u.data[0].map((x, i) => i).filter((i) => u.data[0][i] >= u.scales.x.min && u.data[0][i] <= u.scales.x.max);
  const at = inside.indexOf(u.cursor.idx);
  const next = inside[Math.min(inside.length - 1, Math.max(0, at < 0 ? 0 : at + by))];
  u.setCursor({ left: u.valToPos(u.data[0][next], "x"), top: u.over.clientHeight / 4 });
}

// ---- Controls.

addEventListener("retheme", redraw);
document.getElementById("controls").hidden = false;
document.getElementById("choices").hidden = runs.length < 2;
if (matchMedia("(max-width: 40rem)").matches || runs.length > 12) document.getElementById("choices").open = false;
for (const radio of document.querySelectorAll("[name=axis]")) {
  radio.addEventListener("change", () => {
    axis = radio.value;
    setZoom(null);
  });
}
const slider = document.getElementById("smoothing");
slider.addEventListener("input", () => {
  smoothing = Number(slider.value);
  document.getElementById("smoothed").textContent = slider.value;
  redraw();
});
document.getElementById("reset").addEventListener("click", () => setZoom(null));
for (const box of document.querySelectorAll("[data-run]")) {
  box.addEventListener("change", () => setShown(Number(box.dataset.run), box.checked));
}
for (const button of document.querySelectorAll("[data-all]")) {
  button.addEventListener("click", () => runs.forEach((_, run) => setShown(run, button.dataset.all === "true")));
}
for (const button of document.querySelectorAll("[data-group]")) {
  button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    runs.forEach((run, r) => run.group === Number(button.dataset.group) && setShown(r, on));
  });
}
for (const button of document.querySelectorAll("[data-log]")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const i = Number(button.dataset.log);
    logAxis[i] = !logAxis[i];
    button.setAttribute("aria-pressed", String(logAxis[i]));
    build(i);
  });
}
const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    const i = Number(target.dataset.figure);
    if (isIntersecting && !charts[i]) build(i);
  }
}, { rootMargin: "300px" });
const sized = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const chart = charts[Number(target.dataset.figure)];
    if (chart) chart.setSize(size(target));
  }
});
places.forEach((place, i) => {
  seen.observe(place);
  sized.observe(place);
  place.addEventListener("keydown", (event) => onKey(event, i));
});
// Paper is white, and holds every chart.
addEventListener("beforeprint", () => {
  root.dataset.paper = "";
  figures.forEach((_, i) => build(i));
});
addEventListener("afterprint", () => {
  delete root.dataset.paper;
  redraw();
});
