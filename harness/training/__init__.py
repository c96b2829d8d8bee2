"""Training of drafters: dialogues, features, the loop."""
