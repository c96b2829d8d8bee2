"""Hybrid: one drafter first, another one where the first has nothing."""

from methods.hybrid.drafter import Hybrid

__all__ = ["Hybrid"]
