"""The target model: its specification, weights and chat format, and the model behind its cache."""
