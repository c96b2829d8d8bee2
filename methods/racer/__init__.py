"""RACER: matches and recycled logits in one tree."""

from methods.racer.drafter import Racer

__all__ = ["Racer"]
