"""DDTree and JetSpec: trees from the marginals of a block drafter."""

from methods.ddtree.drafter import DDTree

__all__ = ["DDTree"]
