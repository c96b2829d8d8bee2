"""Renders rows as tables, LaTeX, figures and pages. Loads no torch."""
