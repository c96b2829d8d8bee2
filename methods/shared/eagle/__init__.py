"""EAGLE heads: files, networks, growth of trees, training."""
