"""SpecBlock: blocks of dependent guesses, grown into trees by the estimated rank of the target's token."""

from methods.specblock.drafter import SpecBlock

__all__ = ["SpecBlock"]
