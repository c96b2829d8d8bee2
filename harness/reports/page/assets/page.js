/* The page: draws everything once, and again what a filter touches. */
"use strict";

function redraw() {
  drawBoard();
  drawPairs();
  drawPanels();
  drawExplorer();
  drawRuns();
}

let waiting = 0;
window.addEventListener("resize", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => document.querySelectorAll(".chart[data-width]").forEach(paint), 150);
});
// On paper every panel is near.
window.addEventListener("beforeprint", () => document.querySelectorAll(".chart").forEach(paint));

drawSummary();
buildFilters(redraw);
redraw();
