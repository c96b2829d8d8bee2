"""Targets that write images: the raster of an answer, guidance, and the models that are known."""
