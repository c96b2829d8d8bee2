/* Charts: rows of one panel to an SVG by Observable Plot. Colours are those of the style sheet. */
"use strict";

const ARMS = unique(DATA.rows.filter((row) => row.kind === "arm" && row.method !== DATA.baseline).map((row) => row.method));
const LABELS = unique(DATA.rows.map((row) => row.label));
const STAGE_COLOURS = ["var(--c6)", "var(--c1)", "var(--c4)", "var(--c3)", "var(--rung)"];
const SYMBOLS = ["circle", "square", "triangle", "diamond", "star", "cross", "wye"];
const GAINS = [
  ["measured", (row) => row.speedup, "circle", "var(--c1)"],
  ["free drafter", (row) => row.speedup_free_drafter, "square", "var(--c6)"],
  ["oracle length", (row) => row.speedup_oracle_length, "triangle", "var(--c4)"],
  ["both", (row) => row.speedup_free_and_oracle, "star", "var(--c3)"],
];

/** One colour a method, the same in every chart. */
function colour(row) {
  if (row.method === DATA.baseline) return "var(--base)";
  return row.kind === "rung" ? "var(--rung)" : `var(--c${(ARMS.indexOf(row.method) % 12) + 1})`;
}

const symbol = (label) => SYMBOLS[LABELS.indexOf(label) % SYMBOLS.length];
const named = (row) => row.label + (row.broken ? " (broken)" : row.lossless ? "" : " (lossy)");

/** What all charts share; the labels of a section get the same room on the left, within reason. */
function plot(width, rows, options) {
  const labels = options.rowsOnY ? rows.map(named) : [];
  const longest = Math.min(Math.max(4, ...(options.labels ?? []).map((label) => label.length)), Math.floor((0.42 * width) / 6.6));
  const y = options.rowsOnY
    ? { domain: labels, label: null, tickSize: 0, tickFormat: (label) => shorten(label, longest) }
    : options.y;
  const chart = Plot.plot({
    width,
    height: options.rowsOnY ? 28 * labels.length + 56 : 240,
    marginLeft: options.rowsOnY ? 6.6 * longest + 14 : 44,
    marginRight: options.marginRight ?? 16,
    marginTop: options.rowsOnY ? 8 : 22,
    marginBottom: 42,
    style: { fontSize: "12px", background: "transparent", overflow: "visible" },
    ariaLabel: options.ariaLabel,
    x: options.x,
    y,
    symbol: { type: "identity" },
    color: { type: "identity" },
    marks: options.marks,
  });
  chart.setAttribute("role", "img");
  return chart;
}

/** Horizontal bars with intervals and their numbers; a broken one is only an outline. */
function bars(rows, width, { limit, labels }, { value, ends, write, floor, label }) {
  const whiskers = rows.filter((row) => ends(row));
  const reach = (row) => Math.max(value(row), ends(row)?.[1] ?? 0);
  return plot(width, rows, {
    rowsOnY: true, labels,
    ariaLabel: `${label}: ${rows.map((row) => `${named(row)} ${write(value(row))}`).join(", ")}`,
    x: { domain: [0, limit], label, grid: true, nice: false, ticks: Math.max(3, Math.floor(width / 110)) },
    marginRight: 48,
    marks: [
      known(floor) ? Plot.rect([0], { x1: 1 - floor, x2: 1 + floor, fill: "var(--floor)" }) : null,
      Plot.barX(rows, {
        x: value, y: named, insetTop: 3, insetBottom: 3, fill: (row) => (row.broken ? "none" : colour(row)),
        stroke: colour, strokeDasharray: (row) => (row.broken ? "4 3" : null), rx: 2,
      }),
      Plot.ruleX([1], { stroke: "currentColor", strokeDasharray: "4 3" }),
      Plot.ruleY(whiskers, { x1: (row) => ends(row)[0], x2: (row) => ends(row)[1], y: named, stroke: "var(--ink)", strokeWidth: 1.4 }),
      [0, 1].map((end) => Plot.tickX(whiskers, { x: (row) => ends(row)[end], y: named, insetTop: 8, insetBottom: 8, stroke: "var(--ink)", strokeWidth: 1.4 })),
      Plot.text(rows, {
        x: reach, y: named, text: (row) => write(value(row)), textAnchor: "start", dx: 6, fill: "currentColor",
        stroke: "var(--card)", strokeWidth: 4, fontWeight: 600,
      }),
    ],
  });
}

/** Lines over a shared x, one a row; series(row): [[x, y], ...]. */
function lines(rows, width, { series, x, y, write }) {
  const points = rows.flatMap((row) =>
    series(row).filter(([, value]) => known(value)).map(([at, value, ends]) => ({ row, at, value, ends })));
  const spans = points.filter((point) => point.ends);
  const tone = (point) => colour(point.row);
  return plot(width, rows, {
    ariaLabel: `${y.label} by ${x.label}: ${rows.map(named).join(", ")}`,
    x: { ...x, grid: false },
    y: { grid: true, ...y },
    marks: [
      Plot.ruleY([y.domain ? y.domain[0] : 0], { stroke: "currentColor", strokeOpacity: 0.4 }),
      Plot.ruleX(spans, { x: "at", y1: (point) => point.ends[0], y2: (point) => point.ends[1], stroke: tone, strokeOpacity: 0.6 }),
      Plot.line(points, { x: "at", y: "value", z: (point) => named(point.row), stroke: tone, strokeWidth: 2,
        strokeDasharray: (point) => (point.row.broken || !point.row.lossless ? "5 4" : null) }),
      Plot.dot(points, { x: "at", y: "value", r: 3.5, fill: tone, symbol: (point) => symbol(point.row.label) }),
      Plot.tip(points, Plot.pointer({
        x: "at", y: "value", fill: "var(--card)", stroke: "var(--line)",
        title: (point) => `${named(point.row)}\n${x.label} ${point.at}: ${write(point.value)}`,
      })),
    ],
  });
}

/** Stacked shares of decode time. */
function splitBars(rows, width, { labels }) {
  const parts = rows.flatMap((row) => {
    let start = 0;
    return DATA.stages.map((stage, i) => {
      const share = 100 * Math.max(row.split[stage], 0);
      start += share;
      return { row, stage, x1: start - share, x2: start, fill: STAGE_COLOURS[i] };
    });
  });
  return plot(width, rows, {
    rowsOnY: true, labels,
    ariaLabel: `Shares of decode time: ${rows.map((row) => `${named(row)}: ${DATA.stages.map((stage) => `${stage} ${percent(row.split[stage])}`).join(", ")}`).join("; ")}`,
    x: { domain: [0, 100], label: "% of decode time", grid: true, ticks: 5 },
    marks: [
      Plot.barX(parts, { x1: "x1", x2: "x2", y: (part) => named(part.row), fill: "fill", insetTop: 3, insetBottom: 3, insetRight: 0.5,
        title: (part) => `${named(part.row)}: ${part.stage} ${(part.x2 - part.x1).toFixed(1)} %` }),
      Plot.text(parts.filter((part) => (part.x2 - part.x1) * width > 4200), {
        x: (part) => (part.x1 + part.x2) / 2, y: (part) => named(part.row), fill: "var(--on-colour)",
        text: (part) => `${Math.round(part.x2 - part.x1)}`, fontWeight: 600,
      }),
    ],
  });
}

/** From the measured speedup to what would be possible. */
function gains(rows, width, { limit, labels }) {
  const points = rows.flatMap((row) => GAINS.map(([gain, value, shape, fill]) => ({ row, gain, value: value(row), shape, fill })))
    .filter((point) => known(point.value));
  const reach = (row) => [row.speedup, Math.max(...GAINS.map(([, value]) => value(row)).filter(known))];
  return plot(width, rows, {
    rowsOnY: true, labels,
    ariaLabel: `Headroom: ${rows.map((row) => `${named(row)}: ${GAINS.map(([gain, value]) => `${gain} ${times(value(row))}`).join(", ")}`).join("; ")}`,
    x: { domain: [0, limit], label: "speedup over vanilla", grid: true, ticks: Math.max(3, Math.floor(width / 110)) },
    marks: [
      Plot.ruleX([1], { stroke: "currentColor", strokeDasharray: "4 3" }),
      Plot.ruleY(rows, { x1: (row) => reach(row)[0], x2: (row) => reach(row)[1], y: named, stroke: "currentColor", strokeOpacity: 0.5 }),
      Plot.dot(points, { x: "value", y: (point) => named(point.row), symbol: "shape", fill: "fill", r: 5, stroke: "var(--card)",
        title: (point) => `${named(point.row)}, ${point.gain}: ${times(point.value)}` }),
    ],
  });
}

/** What colours and shapes stand for: [[name, colour, shape or null], ...]. */
function key(entries) {
  const paths = { circle: d3.symbolCircle, square: d3.symbolSquare, triangle: d3.symbolTriangle, diamond: d3.symbolDiamond,
    star: d3.symbolStar, cross: d3.symbolCross, wye: d3.symbolWye };
  return el("ul", { class: "key" }, entries.map(([name, fill, shape]) =>
    el("li", {}, svg("svg", { width: 14, height: 14, viewBox: "-7 -7 14 14", "aria-hidden": "true" },
      shape ? svg("path", { d: d3.symbol(paths[shape], 70)(), fill }) : svg("rect", { x: -6, y: -6, width: 12, height: 12, rx: 2, fill })), name)));
}
