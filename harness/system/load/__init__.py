"""The machine's load: who uses its processors and its GPU, and what counts as a disturbance."""
