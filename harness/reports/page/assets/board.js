/* The leaderboard: filters that hold for the whole page, columns that sort. */
"use strict";

const DATA = JSON.parse(document.getElementById("content-data").textContent);
const STATE = { filters: {}, search: "", column: null, descending: true };
const RUNGS = unique(DATA.rows.flatMap((row) => Object.keys(row.speedup_vs)));

/** Heading, field and writer of what is known about output that may differ from vanilla's. */
const QUALITIES = [
  ["agreement", "agreement", (value) => percent(value)],
  ["log-likelihood / token", "log_likelihood", (value) => number(value, 3)],
  ["score", "score", (value) => percent(value)],
].filter(([, field]) => DATA.rows.some((row) => known(row.quality?.[field])));

/** Whether something that stands at these axes passes the filters. */
function passes(at) {
  return Object.entries(STATE.filters).every(([axis, value]) => !value || at[axis] === undefined || at[axis] === value);
}

function visibleRows() {
  const words = STATE.search.toLowerCase().split(/\s+/).filter(Boolean);
  return DATA.rows.filter((row) => {
    const text = [row.label, row.verdict, row.marks, row.difference, ...Object.values(row.at)].join(" ").toLowerCase();
    return passes({ ...row.at, verdict: row.verdict ?? "none" }) && words.every((word) => text.includes(word));
  });
}

/** What tells this place from others of the page. */
function placeName(at, without = []) {
  const axes = DATA.varying.filter((axis) => !without.includes(axis));
  const names = axes.length ? axes : ["task", "T"].filter((axis) => !without.includes(axis));
  return names.map((axis) => (["task", "target"].includes(axis) ? at[axis] : `${axis} ${at[axis]}`)).join(" · ");
}

/** The filter form: a list for each axis that varies, one for the verdict, a search. */
function buildFilters(onchange) {
  const form = document.getElementById("filters");
  const choices = DATA.varying.map((axis) => [axis, unique(DATA.rows.map((row) => row.at[axis]))]);
  choices.push(["verdict", unique(DATA.rows.map((row) => row.verdict ?? "none"))]);
  for (const [axis, values] of choices) {
    if (values.length < 2) continue;
    const list = el("select", { name: axis, onchange: () => { STATE.filters[axis] = list.value; onchange(); } },
      el("option", { value: "" }, "all"), values.map((value) => el("option", { value }, value)));
    form.append(el("label", {}, el("span", {}, axis), list));
  }
  const search = el("input", {
    type: "search", name: "search", placeholder: "method, mark, …", autocomplete: "off",
    oninput: () => { STATE.search = search.value; onchange(); },
  });
  const reset = el("button", { type: "reset" }, "Reset");
  form.append(el("label", { class: "wide" }, el("span", {}, "search"), search), reset);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => { STATE.filters = {}; STATE.search = ""; setTimeout(onchange); });
}

/** name, what it sorts by, what it shows; `text` columns begin with the smallest when they are chosen. */
function columns() {
  const axes = DATA.varying.filter((axis) => axis !== "profile");
  return [
    ...axes.map((axis) => ({ name: axis, text: true, key: (row) => asNumber(row.at[axis]), show: (row) => row.at[axis] })),
    { name: "method", text: true, key: (row) => row.label, show: (row) => row.label },
    { name: "speedup", key: (row) => row.speedup, show: showSpeedup },
    { name: "tokens/s", key: (row) => row.tokens_per_s, show: (row) => number(row.tokens_per_s, 1) },
    { name: "tau", key: (row) => row.tau, show: (row) => withEnds(number(row.tau), row.method === DATA.baseline ? null : row.tau_ci) },
    { name: "verdict", text: true, key: (row) => row.verdict, show: (row) => badge(row.verdict) },
    ...QUALITIES.map(([name, field, show]) => ({
      name, key: (row) => row.quality?.[field] ?? null, show: (row) => show(row.quality?.[field] ?? null),
    })),
    ...RUNGS.map((rung) => ({
      name: `vs ${rung}`, key: (row) => row.speedup_vs[rung],
      show: (row) => withEnds(times(row.speedup_vs[rung]), row.method === rung ? null : row.speedup_vs_ci[rung]),
    })),
    { name: "% of roof", key: (row) => row.roof_fraction, show: (row) => percent(row.roof_fraction) },
    { name: "prompts", key: (row) => row.num_prompts, show: (row) => String(row.num_prompts) },
    { name: "profile", text: true, key: (row) => row.at.profile, show: (row) => row.at.profile },
    { name: "marks", text: true, key: (row) => row.marks, show: showMarks },
  ];
}

const asNumber = (text) => (text !== "" && Number.isFinite(Number(text)) ? Number(text) : text);
const withEnds = (text, ends) => [text, ends && el("small", {}, ` ${interval(ends)}`)];
const badge = (verdict) => (verdict ? el("span", { class: `badge ${verdict}` }, verdict) : UNKNOWN);

function showMarks(row) {
  const [shown, ...failures] = row.marks.split("FAILED: ");
  const marks = shown.split(", ").filter((mark) => mark && mark !== row.at.profile);
  return el("span", { class: "chips" }, marks.map((mark) => el("span", { class: "chip" }, mark)),
    failures.map((failure) => el("span", { class: "badge failed", title: failure }, shorten(failure, 60))));
}

/** The number, its interval, and a bar of it on the scale of the whole table. */
function showSpeedup(row) {
  if (!known(row.speedup)) return UNKNOWN;
  const isBaseline = row.method === DATA.baseline;
  const spread = isBaseline && known(row.aa_floor)
    ? el("small", {}, ` ±${row.aa_floor.toFixed(2)} A/A`)
    : el("small", {}, ` ${interval(isBaseline ? null : row.speedup_ci)}`);
  const scale = (value) => `${(100 * Math.min(Math.max(value, 0), MOST)) / MOST}%`;
  const [low, high] = row.speedup_ci ?? [row.speedup, row.speedup];
  const style = `--low:${scale(low)};--high:${scale(high)};--value:${scale(row.speedup)};--one:${scale(1)}`;
  return el("span", { class: "speedup" }, el("span", {}, times(row.speedup), spread),
    el("span", { class: `ci is-${row.difference?.split(" ")[0] ?? "same"}`, style, "aria-hidden": "true" }));
}

const MOST = 1.05 * Math.max(1.5, ...DATA.rows.flatMap((row) => [row.speedup, row.speedup_ci?.[1]]).filter(known));

/** Rows in the chosen order; what is not known comes last, whatever the direction. */
function sorted(rows, column) {
  if (!column) return rows;
  const sign = STATE.descending ? -1 : 1;
  const missing = (value) => value === null || value === undefined;
  return [...rows].sort((a, b) => {
    const [x, y] = [column.key(a), column.key(b)];
    if (missing(x) || missing(y)) return missing(x) - missing(y);
    return sign * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y)));
  });
}

function drawBoard() {
  const all = columns();
  const rows = sorted(visibleRows(), all.find((column) => column.name === STATE.column));
  const heads = all.map((column) => {
    const chosen = column.name === STATE.column;
    const order = chosen ? (STATE.descending ? "descending" : "ascending") : null;
    const arrow = el("span", { class: "arrow", "aria-hidden": "true" }, chosen ? (STATE.descending ? "▼" : "▲") : "↕");
    const button = el("button", { type: "button", "data-column": column.name, onclick: () => sortBy(column) }, column.name, arrow);
    return el("th", { scope: "col", "aria-sort": order, class: column.text ? "text" : "number" }, button);
  });
  const cellOf = (row) => DATA.axes.map((axis) => row.at[axis]).join("\n");
  const body = rows.map((row, i) => {
    const begins = !STATE.column && i > 0 && cellOf(row) !== cellOf(rows[i - 1]);
    const name = [row.broken ? "broken" : "", row.failed ? "failed" : "", begins ? "begins" : "", row.kind].join(" ");
    const shown = row.failed ? all.slice(0, all.findIndex((column) => column.name === "method") + 1) : all;
    const failure = row.failed ? el("td", { class: "text", colspan: all.length - shown.length }, el("span", { class: "badge failed" }, "failed"), el("span", { class: "failure" }, ` ${row.marks}`)) : null;
    return el("tr", { class: name }, shown.map((column) => {
      const heading = column.name === "method";
      return el(heading ? "th" : "td", { scope: heading && "row", class: column.text ? "text" : "number" }, column.show(row));
    }), failure);
  });
  const caption = el("caption", { class: "hidden" }, "Every method in every cell; the headings sort");
  const focused = document.activeElement?.dataset?.column;
  document.getElementById("board-table").replaceChildren(
    el("table", { class: "board" }, caption, el("thead", {}, el("tr", {}, heads)), el("tbody", {}, body)));
  const button = [...document.querySelectorAll("#board-table button")].find((one) => one.dataset.column === focused);
  if (focused) button?.focus();
  document.getElementById("board-count").textContent = `${rows.length} of ${plural(DATA.rows.length, "row")}`;
}

/** A second choice of a column turns it round, a third goes back to the order of the cells. */
function sortBy(column) {
  const first = !column.text;
  if (STATE.column !== column.name) Object.assign(STATE, { column: column.name, descending: first });
  else if (STATE.descending === first) STATE.descending = !first;
  else STATE.column = null;
  drawBoard();
}

function drawSummary() {
  const targets = unique(DATA.rows.map((row) => row.at.target));
  const tasks = unique(DATA.rows.map((row) => row.at.task));
  document.getElementById("summary").textContent =
    `${plural(DATA.runs.length, "run")} · ${plural(targets.length, "target")} (${shorten(targets.join(", "), 90)}) · ` +
    `${plural(tasks.length, "task")} (${shorten(tasks.join(", "), 90)}) · ${plural(DATA.rows.length, "row")}`;
  const counts = groupBy(DATA.rows, (row) => (row.failed ? "failed" : row.verdict ?? "not judged"));
  document.getElementById("verdicts").append(
    ...[...counts].map(([name, rows]) => el("span", { class: `badge ${name}` }, `${rows.length} ${name}`)));
  if (DATA.notes.length) {
    document.getElementById("notes").append(
      el("h3", {}, "Footnotes"), el("ul", { class: "note" }, DATA.notes.map((note) => el("li", {}, note))));
  }
}
