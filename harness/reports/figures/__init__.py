"""Figures of rows as PNG and SVG: speed, tau, and how both depend on position, call and temperature."""

from harness.reports.figures.drawing import BATCHES, KINDS, TEMPERATURES, draw, draw_once

__all__ = ["BATCHES", "KINDS", "TEMPERATURES", "draw", "draw_once"]
