"""SAM: drafts in proportion to the match."""

from methods.sam.drafter import SAM

__all__ = ["SAM"]
