"""Figures of rows as PNG and SVG: speed, tau, and how both depend on position, call and temperature."""

from harness.reports.figures.drawing import BATCHES, KINDS, TEMPERATURES, USERS, draw, draw_once

__all__ = ["BATCHES", "KINDS", "TEMPERATURES", "USERS", "draw", "draw_once"]
