"""A benchmark harness for speculative decoding: `harness` owns truth, `methods` own guesses."""

import os

# torch then asks for huge pages for large tensors: weights stream faster, for every arm and rung alike.
# It is read once, when torch first allocates.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
