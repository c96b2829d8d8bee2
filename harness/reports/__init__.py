"""From rows to tables, figures and pages, without torch."""
