"""The networks of draft heads: what they share, one module per generation, and the choice between them."""
