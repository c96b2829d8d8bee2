"""P-EAGLE: EAGLE-3's head, which drafts a whole chain in one call."""

from methods.peagle.drafter import PEagle

__all__ = ["PEagle"]
