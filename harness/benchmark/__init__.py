"""One run: what is measured, in which order, and what is written down."""
