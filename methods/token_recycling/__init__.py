"""Token Recycling: a static tree of recycled successors."""

from methods.token_recycling.drafter import TokenRecycling

__all__ = ["TokenRecycling"]
