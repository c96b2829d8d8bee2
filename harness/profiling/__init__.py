"""How long steps and drafters take on this machine."""
