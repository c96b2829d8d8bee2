"""The target model: its specification, weights, chat format, and the model behind its cache."""
