"""Noise: who else used the machine while a block was measured, and which blocks are measured again for it."""
