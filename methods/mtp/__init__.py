"""MTP: the target itself predicts several tokens, by mask tokens that it was trained to read."""

from methods.mtp.drafter import Mtp

__all__ = ["Mtp"]
