/* Elements whose text is always text, and numbers as people read them. Nothing here parses HTML. */
"use strict";

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

/** el("p", {class: "note"}, "text", child): an HTML element; `onclick` and its like are listeners. */
function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

const UNKNOWN = "–";
const known = (value) => typeof value === "number" && Number.isFinite(value);
const number = (value, digits = 2) => (known(value) ? value.toFixed(digits) : UNKNOWN);
const times = (value) => (known(value) ? `${value.toFixed(2)}x` : UNKNOWN);
const percent = (value) => (known(value) ? `${(100 * value).toFixed(1)} %` : UNKNOWN);
const interval = (ends, digits = 2) => (ends ? `[${ends.map((end) => end.toFixed(digits)).join(", ")}]` : "");
const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
const unique = (values) => [...new Set(values)];
const shorten = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);

/** Items by key, in the order in which keys are met. */
function groupBy(items, key) {
  const groups = new Map();
  for (const item of items) {
    const name = key(item);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(item);
  }
  return groups;
}

/** A table of plain cells; the first of each row is its heading. */
function table(headers, body, caption) {
  const head = el("tr", {}, headers.map((name) => el("th", { scope: "col" }, name)));
  const line = (cells) =>
    el("tr", {}, cells.map((cell, i) => (i ? el("td", {}, cell) : el("th", { scope: "row" }, cell))));
  return el("table", { class: "plain" }, caption && el("caption", {}, caption), el("thead", {}, head),
    el("tbody", {}, body.map(line)));
}
