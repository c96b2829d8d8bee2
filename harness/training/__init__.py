"""Trains draft heads: dialogues, target features computed on the fly, packing and the optimiser loop."""
