"""A benchmark harness for speculative decoding: it measures and verifies what `methods` propose."""

import os

# Has torch ask for huge pages for large tensors, so that weights stream faster, in all arms and rungs alike.
# torch reads the variable once, at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
