"""How block drafters are trained: blocks of a text, what they are compared with, and losses."""
