"""How the turns of a question are answered, one scenario per module."""
