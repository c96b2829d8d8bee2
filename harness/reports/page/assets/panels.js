/* Sections of panels: one chart a cell, drawn when it comes near the screen, its numbers as a table below it. */
"use strict";

const MAX_PANELS = 12;
const last = (values) => values[values.length - 1];

/** A panel for each cell of rows that have what the section shows. */
const byCell = (rows) => [...groupBy(rows, (row) => DATA.axes.map((axis) => row.at[axis]).join("\n")).values()];

/** For the batch curve: the rows of a cell at all its batch sizes, where there are several. */
function byBatch(rows) {
  const axes = DATA.axes.filter((axis) => axis !== "batch");
  const groups = [...groupBy(rows, (row) => axes.map((axis) => row.at[axis]).join("\n")).values()];
  return groups.filter((group) => unique(group.map((row) => row.at.batch)).length > 1);
}

const most = (values, least) => 1.12 * Math.max(least, ...values.filter(known));
const methodKey = (rows) => key(unique(rows.map(named)).map((name) => {
  const row = rows.find((one) => named(one) === name);
  return [name, colour(row), symbol(row.label)];
}));

function batchLines(write, value, ends, label) {
  return (rows, width) => {
    const sizes = unique(rows.map((row) => Number(row.at.batch))).sort((a, b) => a - b);
    const heads = [...groupBy(rows, named).values()].map((group) => ({ ...group[0], all: group }));
    return lines(heads, width, {
      series: (head) => [...head.all].sort((a, b) => a.at.batch - b.at.batch).map((row) => [Number(row.at.batch), value(row), ends(row)]),
      x: { label: "batch size", type: "log", base: 2, ticks: sizes, tickFormat: String },
      y: { label, domain: [0, most(rows.flatMap((row) => [value(row), ends(row)?.[1]]), 0)] },
      write,
    });
  };
}

const SECTIONS = [
  {
    where: "#speed .panels", has: (row) => known(row.speedup), groups: byCell, empty: "No run was timed.",
    limit: (rows) => most(rows.flatMap((row) => [row.speedup, row.speedup_ci?.[1]]), 1.2),
    draw: (rows, width, shared) => bars(rows, width, shared, {
      value: (row) => row.speedup, ends: (row) => (row.method === DATA.baseline ? null : row.speedup_ci), write: times,
      floor: rows.map((row) => row.aa_floor).find(known), label: "speedup over vanilla",
    }),
    headers: ["method", "speedup", "95 % interval", "tokens/s", "decode only", "geometric mean", "mean of rates"],
    numbers: (row) => [named(row), times(row.speedup), interval(row.speedup_ci), number(row.tokens_per_s, 1),
      times(row.speedup_decode_only), times(row.speedup_geometric), times(row.speedup_mean_of_rates)],
  },
  {
    where: "#tau .panels", has: (row) => known(row.tau), groups: byCell, empty: "No arm of the loop was run.",
    limit: (rows) => most(rows.flatMap((row) => [row.tau, row.tau_ci?.[1]]), 1.2),
    draw: (rows, width, shared) => bars(rows, width, shared, {
      value: (row) => row.tau, ends: (row) => (row.method === DATA.baseline ? null : row.tau_ci), write: (value) => number(value),
      label: "tokens a round (tau)",
    }),
    headers: ["method", "tau", "95 % interval", "macro", "untrimmed", "as EAGLE", "as vLLM", "as Spec-Bench", "coverage"],
    numbers: (row) => [named(row), number(row.tau), interval(row.tau_ci),
      ...["macro_tau", "untrimmed_tau", "as_eagle", "as_vllm", "as_spec_bench"].map((name) => number(row.ledger?.[name])), percent(row.ledger?.coverage)],
  },
  {
    where: "#by-position", has: (row) => row.ledger?.conditional.some(known), groups: byCell, empty: "Nothing was drafted.", legend: methodKey,
    draw: (rows, width) => lines(rows, width, {
      series: (row) => row.ledger.conditional.map((share, i) => [i + 1, share]),
      x: { label: "position in the draft", tickFormat: "d", ticks: d3.range(1, 1 + Math.max(...rows.map((row) => row.ledger.conditional.length))).filter(everyFew(rows, (row) => row.ledger.conditional.length, width)) },
      y: { label: "share kept, given all before", domain: [0, 1], tickFormat: ".0%" }, write: percent,
    }),
    headers: ["method", "kept, given all before: position 1, 2, …", "at least so many: 1, 2, …"],
    numbers: (row) => [named(row), row.ledger.conditional.map((share) => number(share)).join("  "), row.ledger.joint.map((share) => number(share)).join("  ")],
  },
  {
    where: "#along", has: (row) => row.ledger?.along.some(known), groups: byCell, empty: "No arm of the loop was run.", legend: methodKey,
    limit: (rows) => most(rows.flatMap((row) => row.ledger.along), 1.2),
    draw: (rows, width, { limit }) => lines(rows, width, {
      series: (row) => row.ledger.along.map((value, i) => [i * row.ledger.along_stride, value]),
      x: { label: "first token of the round", nice: true, ticks: Math.max(3, Math.floor(width / 90)) },
      y: { label: "tokens a round", domain: [0, limit] }, write: (value) => number(value),
    }),
    headers: ["method", "tokens a stretch", "tau of the stretches, in order"],
    numbers: (row) => [named(row), String(row.ledger.along_stride), row.ledger.along.map((value) => number(value)).join("  ")],
  },
  {
    where: "#split .panels", has: (row) => DATA.stages.some((stage) => known(row.split[stage])), groups: byCell, empty: "No run was timed.",
    legend: () => key(DATA.stages.map((stage, i) => [stage, STAGE_COLOURS[i], null])), draw: splitBars,
    headers: ["method", ...DATA.stages], numbers: (row) => [named(row), ...DATA.stages.map((stage) => percent(row.split[stage]))],
  },
  {
    where: "#headroom .panels", has: (row) => row.kind === "arm" && row.method !== DATA.baseline && known(row.speedup_free_drafter),
    groups: byCell, empty: "No drafter was timed.", legend: (rows) => key(GAINS.filter(([, value]) => rows.some((row) => known(value(row)))).map(([name, , shape, fill]) => [name, fill, shape])),
    limit: (rows) => most(rows.flatMap((row) => GAINS.map(([, value]) => value(row))), 1.2),
    draw: gains,
    headers: ["method", ...GAINS.map(([name]) => name)], numbers: (row) => [named(row), ...GAINS.map(([, value]) => times(value(row)))],
  },
  {
    where: "#batch .panels", has: (row) => known(row.tokens_per_s), groups: byBatch, without: ["batch"], legend: methodKey,
    empty: "Only one batch size was run; --multirun measure.batch_size=1,2,4 makes a curve.",
    draw: (rows, width) => el("div", {},
      batchLines((value) => number(value, 1), (row) => row.tokens_per_s, () => null, "tokens/s")(rows, width),
      batchLines(times, (row) => row.speedup, (row) => row.speedup_ci, "speedup over vanilla of the same batch size")(rows.filter((row) => known(row.speedup)), width)),
    headers: ["method", "batch size", "tokens/s", "speedup"],
    numbers: (row) => [named(row), row.at.batch, number(row.tokens_per_s, 1), `${times(row.speedup)} ${interval(row.speedup_ci)}`],
  },
];

/** Keeps the ticks of a long axis apart. */
function everyFew(rows, length, width) {
  const step = Math.ceil(Math.max(...rows.map(length)) / (width / 36));
  return (tick, i) => i % step === 0;
}

const watcher = new IntersectionObserver(
  (entries) => entries.forEach((entry) => entry.isIntersecting && paint(entry.target)), { rootMargin: "800px" });
const PAINTERS = new WeakMap();

/** Draw a panel's chart at the width that it has; once, until its width changes. */
function paint(holder) {
  const width = Math.floor(holder.clientWidth);
  if (!width || holder.dataset.width === String(width)) return;
  holder.dataset.width = width;
  holder.replaceChildren(PAINTERS.get(holder)(width));
}

function drawPanels() {
  const rows = visibleRows();
  for (const section of SECTIONS) drawSection(section, rows.filter(section.has), MAX_PANELS);
}

function drawSection(section, rows, count) {
  const groups = section.groups(rows);
  const place = document.querySelector(section.where);
  if (!groups.length) {
    place.replaceChildren(el("p", { class: "empty" }, rows.length || !DATA.rows.some(section.has) ? section.empty : "Nothing passes the filters."));
    return;
  }
  const limit = section.limit?.(groups.flat());
  const labels = groups.flat().map(named);
  const panels = groups.slice(0, count).map((group) => panel(section, group, { limit, labels }));
  const rest = groups.length - panels.length;
  const more = el("button", { type: "button", class: "more", onclick: () => drawSection(section, rows, Infinity) }, `Show ${rest} more`);
  place.replaceChildren(section.legend ? section.legend(groups.flat()) : "", el("div", { class: "grid" }, panels), rest > 0 ? more : "");
}

function panel(section, rows, shared) {
  const holder = el("div", { class: "chart" });
  PAINTERS.set(holder, (width) => section.draw(rows, width, shared));
  watcher.observe(holder);
  const numbers = el("details", { ontoggle: () => {
    if (numbers.open && numbers.childElementCount === 1) {
      numbers.append(el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Numbers of this chart" }, table(section.headers, rows.map(section.numbers))));
    }
  } }, el("summary", {}, "Numbers"));
  return el("figure", { class: "panel" }, el("figcaption", {}, placeName(rows[0].at, section.without)), holder, numbers);
}

/** The matrix of a cell: every method against every other. */
function drawPairs() {
  const shown = new Set(visibleRows().map((row) => `${DATA.axes.map((axis) => row.at[axis]).join("\n")}\n${row.method}\n${row.variant}`));
  const cell = (pair) => `${DATA.axes.map((axis) => pair.at[axis]).join("\n")}`;
  const pairs = DATA.pairs.filter((pair) =>
    [pair.over, pair.under].every((method) => shown.has(`${cell(pair)}\n${method}\n${pair.variant}`)));
  const groups = [...groupBy(pairs, (pair) => `${cell(pair)}\n${pair.variant}`).values()];
  const place = document.querySelector("#pairs .matrices");
  const draw = (count) => {
    const more = el("button", { type: "button", class: "more", onclick: () => draw(Infinity) }, `Show ${groups.length - count} more`);
    place.replaceChildren(...groups.slice(0, count).map(matrix), groups.length > count ? more : "");
  };
  if (groups.length) draw(MAX_PANELS);
  else place.replaceChildren(el("p", { class: "empty" }, "No two timed methods of one cell pass the filters."));
}

function matrix(pairs) {
  const methods = unique(pairs.flatMap((pair) => [pair.under, pair.over]));
  const found = (row, column) => {
    const pair = pairs.find((one) => (one.over === row && one.under === column) || (one.over === column && one.under === row));
    if (!pair || pair.over === row) return pair;
    const turned = { faster: "slower", slower: "faster" }[pair.difference] ?? pair.difference;
    return { ...pair, ratio: 1 / pair.ratio, ends: pair.ends && [1 / pair.ends[1], 1 / pair.ends[0]], difference: turned };
  };
  const marks = { faster: ["faster", "▲"], slower: ["slower", "▼"], "not distinguishable": ["same", "≈"] };
  const write = (row, column) => {
    const pair = found(row, column);
    if (!pair) return el("td", { class: "none" }, row === column ? "" : UNKNOWN);
    const [name, mark] = marks[pair.difference];
    return el("td", { class: `${name}${pair.broken ? " broken" : ""}`, title: `${row} is ${pair.broken ? "void against" : pair.difference === "not distinguishable" ? "not distinguishable from" : `${name} than`} ${column}` },
      el("b", {}, `${mark} ${times(pair.ratio)}`), el("small", {}, interval(pair.ends)));
  };
  const head = el("tr", {}, el("td", {}), methods.map((method) => el("th", { scope: "col" }, method)));
  const body = methods.map((row) => el("tr", {}, el("th", { scope: "row" }, row), methods.map((column) => write(row, column))));
  const name = placeName(pairs[0].at) + (pairs[0].variant ? ` [${pairs[0].variant}]` : "");
  return el("figure", { class: "panel" }, el("figcaption", {}, name),
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Pairs: ${name}` },
      el("table", { class: "matrix" }, el("thead", {}, head), el("tbody", {}, body))));
}
