"""Figures of rows: speedup, acceptance length, acceptance by position and split of time, as PNG and SVG."""

from harness.reports.figures.drawing import BATCHES, KINDS, draw, draw_once

__all__ = ["BATCHES", "KINDS", "draw", "draw_once"]
