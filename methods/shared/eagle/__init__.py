"""EAGLE draft heads: checkpoints, configuration, networks, tree growth and training."""
