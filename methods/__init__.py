"""Drafters, one module per method. They only propose tokens; `harness` decides which are kept."""
