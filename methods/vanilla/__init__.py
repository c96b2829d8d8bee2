"""Vanilla: plain autoregression, the baseline of every comparison."""

from methods.vanilla.drafter import Vanilla

__all__ = ["Vanilla"]
