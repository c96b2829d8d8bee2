/* Provenance: in what the runs differ, and the manifest of each. */
"use strict";

/** A value of the manifest as text: objects become lists of names and values. */
function value(of) {
  if (of === null || of === "") return UNKNOWN;
  if (Array.isArray(of)) return of.every((one) => typeof one !== "object" || one === null) ? of.join(", ") || UNKNOWN : JSON.stringify(of);
  if (typeof of !== "object") return String(of);
  const entries = Object.entries(of);
  return entries.length ? facts(entries) : UNKNOWN;
}

const facts = (entries) => el("dl", { class: "facts" }, entries.map(([name, one]) => [el("dt", {}, name), el("dd", {}, value(one))]));

function drawRuns() {
  const runs = DATA.runs.filter((run) => passes(place(run)));
  document.getElementById("run-list").replaceChildren(
    differing(), el("div", { class: "run-list" }, runs.map(runCard)), runs.length ? "" : el("p", { class: "empty" }, "No run passes the filters."));
}

/** The axes of a run as those of rows are written. */
function place(run) {
  return { ...run.cell, T: String(run.cell.temperature), batch: String(run.cell.batch_size) };
}

function differing() {
  const names = Object.keys(DATA.differences);
  if (!names.length) return "";
  const body = names.map((name) => [name, ...[el("ul", {}, Object.entries(DATA.differences[name]).map(([one, ids]) =>
    el("li", {}, el("code", {}, shorten(one, 120)), ` ${plural(ids.length, "run")}`)))]]);
  return el("details", {}, el("summary", {}, `${plural(names.length, "fact")} in which the runs differ, beside the axes of the tables`),
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Facts in which runs differ" }, table(["fact", "values"], body)));
}

/** One run; its facts are written when it is opened. */
function runCard(run) {
  const state = run.failures.length ? "failed" : run.finished ? "finished" : "not finished";
  const git = run.provenance.git ?? {};
  const card = el("details", { class: "run", ontoggle: () => {
    if (card.open && card.childElementCount === 1) card.append(runFacts(run));
  } }, el("summary", {}, el("code", {}, run.run_id), el("span", { class: `badge ${state.split(" ")[0]}` }, state),
    el("small", {}, [run.created, placeName(place(run)), plural(run.num_records, "record"), git.commit && `commit ${String(git.commit).slice(0, 10)}${git.dirty ? ", changed" : ""}`].filter(Boolean).join(" · "))));
  return card;
}

function runFacts(run) {
  const parts = [
    ["Failures", run.failures.length ? run.failures : null],
    ["Typed", run.overrides.length ? run.overrides.join(" ") : null],
    ["Arms", run.arms], ["Rungs", run.rungs.length ? run.rungs : null], ["Target", run.target], ["Prompts", run.prompts], ["Provenance", run.provenance],
    ["Kept to look at", plural(run.num_exhibits, "answer")], ["Store", `schema version ${run.schema_version}, replicate ${run.replicate}`],
  ].filter(([, one]) => one !== null && Object.keys(one).length);
  return el("div", { class: "run-facts" }, parts.map(([name, one]) => [el("h4", {}, name), el("div", {}, value(one))]),
    el("details", {}, el("summary", {}, "Configuration, resolved"), el("pre", { tabindex: 0 }, JSON.stringify(run.config, null, 1))));
}
