"""Recorded cases of block drafters: DFlash, DFlash2, DSpark, and the heads that speculators trains."""
