"""Training of heads: dialogues, features, the loop."""
