/* The explorer: an answer as blocks of one round each, and the draft tree of the round that is chosen. */
"use strict";

const ANSWERS = JSON.parse(document.getElementById("answers-data").textContent);
const CHOICE = { cell: null, prompt: null, arm: null, round: null };
const NUM_TINTS = 6;
const MAX_PIECE = 14;

const cellOf = (answer) => placeName(answer.at) + (answer.variant ? ` [${answer.variant}]` : "");
const promptOf = (answer) => `${answer.conversation}${answer.turn ? `, turn ${answer.turn + 1}` : ""}`;
const textOf = (answer, token) => ANSWERS.vocabularies[answer.vocabulary][token] ?? `#${token}`;
/** A token as it can be seen: its spaces and line ends have signs. */
const visible = (text) => visibleInText(text).replace(/^ | $/g, "␣") || "∅";

function drawExplorer() {
  const place = document.getElementById("explorer");
  const answers = ANSWERS.shown.filter((answer) => passes(answer.at));
  const dropped = ANSWERS.num_kept - ANSWERS.shown.length;
  document.getElementById("answers-count").textContent = ANSWERS.num_kept
    ? `Here: ${ANSWERS.shown.length} of the ${plural(ANSWERS.num_kept, "answer")} that these runs keep.${dropped ? " The others are in the store; the page is bounded." : ""}` : "";
  if (!answers.length) {
    place.replaceChildren(el("p", { class: "empty" }, ANSWERS.num_kept ? "No answer passes the filters." : "These runs keep no answers: they were measured before runs did."));
    return;
  }
  const cells = groupBy(answers, cellOf);
  if (!cells.has(CHOICE.cell)) CHOICE.cell = cells.keys().next().value;
  const prompts = groupBy(cells.get(CHOICE.cell), promptOf);
  if (!prompts.has(CHOICE.prompt)) CHOICE.prompt = prompts.keys().next().value;
  const arms = groupBy(prompts.get(CHOICE.prompt), (answer) => answer.arm);
  // The first that drafts: a round of vanilla's has nothing to show.
  if (!arms.has(CHOICE.arm)) CHOICE.arm = [...arms.keys()].find((arm) => arms.get(arm)[0].trees.length) ?? arms.keys().next().value;
  const answer = arms.get(CHOICE.arm)[0];
  const choose = (change) => { Object.assign(CHOICE, change, { round: null }); drawExplorer(); };
  const list = (label, names, chosen, change) => {
    const select = el("select", { onchange: () => { choose(change(select.value)); focusOn(`select[name="${label}"]`); }, name: label },
      [...names].map((name) => el("option", { value: name, selected: name === chosen }, name)));
    return el("label", {}, el("span", {}, label), select);
  };
  const arm = (name) => el("button", {
    type: "button", "aria-pressed": String(name === CHOICE.arm), "data-arm": name,
    onclick: () => { choose({ arm: name }); [...document.querySelectorAll("#explorer [data-arm]")].find((one) => one.dataset.arm === name)?.focus(); },
  }, name, el("small", {}, ` ${plural(arms.get(name)[0].emitted.length, "round")}`));
  place.replaceChildren(
    el("div", { class: "filters" },
      cells.size > 1 ? list("cell", cells.keys(), CHOICE.cell, (cell) => ({ cell })) : null,
      list("prompt", prompts.keys(), CHOICE.prompt, (prompt) => ({ prompt })),
      el("div", { class: "arms", role: "group", "aria-label": "Method" }, [...arms.keys()].map(arm))),
    el("details", { class: "prompt", open: answer.prompt.length < 400 }, el("summary", {}, `Prompt (${plural(answer.num_prompt_tokens, "token")}, ${answer.category})`), el("p", {}, answer.prompt)),
    el("p", { class: "note" }, describe(answer)),
    answer.picture ? drawPicture(answer.picture) : null,
    drawAnswer(answer),
    el("ul", { class: "key" }, el("li", {}, el("span", { class: "round r1 sample" }, "ab", el("i", {}, "c")), "one round: drafted tokens kept, then the target's own"),
      el("li", {}, el("span", { class: "round r2 sample has-tree" }, "ab"), "its tree was kept")),
    el("div", { id: "round" }));
  const withTrees = answer.trees.map((tree) => tree.round);
  const rich = answer.trees.reduce((best, tree) => (!best || tree.kept.length > best.kept.length ? tree : best), null);
  drawRound(answer, CHOICE.round ?? rich?.round ?? 0, withTrees);
}

const focusOn = (selector) => document.querySelector(`#explorer ${selector}`)?.focus();

function describe(answer) {
  const rounds = answer.emitted.length;
  const tau = rounds ? d3.sum(answer.emitted) / rounds : null;
  const stop = { end: "end token", cap: "cap on tokens", context: "context limit" }[answer.stop];
  return `${plural(answer.num_tokens, "token")} in ${plural(rounds, "round")} (tau ${number(tau)}), stopped by the ${stop}` +
    (answer.total_ns ? `, ${(answer.total_ns / 1e9).toFixed(2)} s` : "") + (answer.verdict ? `; verdict: ${answer.verdict}` : "") +
    (answer.ids.length < answer.num_tokens ? `; the first ${answer.ids.length} tokens are shown` : "") + ".";
}

/** The picture that an image model painted, each pixel as a square of a few dots. */
function drawPicture(rows) {
  const [width, height] = [rows[0].length / 6, rows.length];
  const side = Math.max(1, Math.floor(256 / Math.max(width, height)));
  const canvas = el("canvas", { class: "picture", width: width * side, height: height * side, role: "img", "aria-label": "The picture of this answer" });
  const pen = canvas.getContext("2d");
  rows.forEach((row, y) => {
    for (let x = 0; x < width; x += 1) {
      pen.fillStyle = `#${row.slice(6 * x, 6 * x + 6)}`;
      pen.fillRect(x * side, y * side, side, side);
    }
  });
  return canvas;
}

/** Index of the first token of each round. The prefill emits token 0. */
function starts(answer) {
  let at = 1;
  return answer.emitted.map((count) => (at += count) - count);
}

function drawAnswer(answer) {
  const begins = starts(answer);
  const kept = new Set(answer.trees.map((tree) => tree.round));
  const shown = begins.filter((begin) => begin < answer.ids.length);
  const token = (i, own) => el(own ? "i" : "span", {}, visibleInText(textOf(answer, answer.ids[i])));
  const block = (begin, round) => {
    const count = Math.min(answer.emitted[round], answer.ids.length - begin);
    // Trimming may have cut off the target's own token.
    const ownAt = answer.accepted[round] < answer.emitted[round] ? answer.accepted[round] : -1;
    const label = `Round ${round + 1}: ${answer.drafted[round]} drafted, ${answer.accepted[round]} kept${kept.has(round) ? ", tree kept" : ""}: `;
    const button = el("button", {
      type: "button", class: `round r${round % NUM_TINTS}${kept.has(round) ? " has-tree" : ""}`, "data-round": round, tabindex: -1, title: label.slice(0, -2),
      onclick: () => drawRound(answer, round, [...kept]),
    }, el("span", { class: "hidden" }, label), d3.range(count).map((i) => token(begin + i, i === ownAt)));
    return [button, breaks(answer, begin, count)];
  };
  const box = el("div", { class: "answer", role: "group", "aria-label": "Answer by rounds; arrow keys move" },
    answer.ids.length ? el("span", { class: "round prefill", title: "Emitted by the prefill" }, token(0, true)) : null, shown.map(block));
  box.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const buttons = [...box.querySelectorAll("button")];
    const at = buttons.indexOf(document.activeElement);
    const next = event.key === "Home" ? 0 : event.key === "End" ? buttons.length - 1 : at + (step ?? 0);
    if (at < 0 || (!step && !["Home", "End"].includes(event.key)) || !buttons[next]) return;
    event.preventDefault();
    drawRound(answer, Number(buttons[next].dataset.round), [...kept]);
    buttons[next].focus();
  });
  return box;
}

/** In running text spaces stay spaces, and a line ends after the block that ended it. */
const visibleInText = (text) => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(
  /\p{Cc}/gu, (sign) => `\\x${sign.charCodeAt(0).toString(16).padStart(2, "0")}`);
const breaks = (answer, begin, count) => (answer.ids.slice(begin, begin + count).some((id) => textOf(answer, id).includes("\n")) ? "\n" : "");

function drawRound(answer, round, withTrees) {
  CHOICE.round = round;
  for (const button of document.querySelectorAll("#explorer .answer button")) {
    const chosen = Number(button.dataset.round) === round;
    button.setAttribute("aria-pressed", String(chosen));
    button.tabIndex = chosen ? 0 : -1;
  }
  const place = document.getElementById("round");
  if (!answer.emitted.length) {
    place.replaceChildren(el("p", { class: "empty" }, "The prefill emitted the whole answer; there was no round."));
    return;
  }
  const tree = answer.trees.find((one) => one.round === round);
  const before = last(withTrees.filter((one) => one < round));
  const after = withTrees.find((one) => one > round);
  const step = (name, target) => el("button", { type: "button", disabled: target === undefined, "data-step": name, onclick: () => {
    drawRound(answer, target, withTrees);
    document.querySelector(`#round [data-step="${name}"]:not([disabled])`)?.focus();
  } }, name);
  const begin = starts(answer)[round];
  const own = answer.emitted[round] > answer.accepted[round] ? answer.ids[begin + answer.accepted[round]] : undefined;
  const counts = `${answer.drafted[round]} drafted, ${answer.accepted[round]} kept, ${answer.emitted[round]} emitted, from token ${begin + 1} on`;
  place.replaceChildren(
    el("div", { class: "round-head" }, el("h3", {}, `Round ${round + 1} of ${answer.emitted.length}`), el("p", { class: "note" }, counts),
      withTrees.length ? el("span", { class: "steps" }, step("previous tree", before), step("next tree", after)) : null),
    tree ? drawTree(answer, tree, own, begin) : el("p", { class: "empty" }, answer.drafted[round] ? "The tree of this round was not kept; those of the rounds with a bar below them were." : "Nothing was drafted in this round: the target wrote the token by itself."));
}

/** The tree from left to right: pending token, drafted nodes, and the target's own token after the kept path. */
function drawTree(answer, tree, own, begin) {
  const kept = new Set(tree.kept);
  const nodes = tree.tokens.map((token, i) => ({
    id: String(i), parent: tree.parents[i] < 0 ? "root" : String(tree.parents[i]), text: textOf(answer, token),
    state: kept.has(i) ? "kept" : "rejected", confidence: tree.confidence[i],
  }));
  nodes.unshift({ id: "root", parent: null, text: textOf(answer, answer.ids[begin - 1]), state: "pending" });
  if (own !== undefined) nodes.push({ id: "own", parent: tree.kept.length ? String(last(tree.kept)) : "root", text: textOf(answer, own), state: "own" });
  const root = d3.stratify().id((node) => node.id).parentId((node) => node.parent)(nodes);
  // The kept path is on top, so that it reads as a line.
  const rank = { kept: 0, own: 1, rejected: 2 };
  root.sort((a, b) => rank[a.data.state] - rank[b.data.state] || (b.data.confidence ?? 0) - (a.data.confidence ?? 0));
  const longest = Math.max(...nodes.map((node) => Math.min(visible(node.text).length, MAX_PIECE)));
  const box = 8 * longest + 18;
  d3.tree().nodeSize([30, box + 34]).separation(() => 1)(root);
  const all = root.descendants();
  const [top, bottom] = d3.extent(all, (node) => node.x);
  const size = { width: d3.max(all, (node) => node.y) + box + 4, height: bottom - top + 34 };
  const at = (node) => node.x - top + 17;
  const link = d3.linkHorizontal().x((point) => point[0]).y((point) => point[1]);
  const say = { pending: "pending token", kept: "kept", rejected: "rejected", own: "the target's own token" };
  const tell = (node) => `${visible(node.data.text)}: ${say[node.data.state]}` +
    (known(node.data.confidence) ? `; the drafter gave its path ${percent(node.data.confidence)}` : "");
  const summary = `Draft tree of ${tree.tokens.length} nodes, ${tree.kept.length} kept`;
  const drawing = svg("svg", { class: "tree", width: size.width, height: size.height, viewBox: `0 0 ${size.width} ${size.height}`, role: "img", "aria-label": `${summary}. The same as text is below.` },
    root.links().map(({ source, target }) => svg("path", { class: `link ${target.data.state}`, d: link({ source: [source.y + box, at(source)], target: [target.y, at(target)] }) })),
    all.map((node) => svg("g", { class: `node ${node.data.state}`, transform: `translate(${node.y},${at(node)})` },
      svg("title", {}, tell(node)), svg("rect", { x: 0.5, y: -12, width: box - 1, height: 24, rx: 6 }),
      svg("text", { x: box / 2, y: 4.5, "text-anchor": "middle" }, shorten(visible(node.data.text), MAX_PIECE)))));
  const asList = (node) => el("li", {}, tell(node), node.children ? el("ul", {}, node.children.map(asList)) : null);
  return el("div", {},
    el("ul", { class: "key" }, Object.entries(say).map(([state, text]) => el("li", {}, el("span", { class: `swatch ${state}` }), text))),
    el("div", { class: "scroll tree-scroll", tabindex: 0, role: "region", "aria-label": summary }, drawing),
    el("details", {}, el("summary", {}, "The tree as text"), el("ul", { class: "as-text" }, asList(root))));
}
