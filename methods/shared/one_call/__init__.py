"""What drafters have in common that guess several tokens in one call of a network of their own."""
