"""Suffix: retrieval by suffix automaton."""

from methods.suffix.drafter import Suffix

__all__ = ["Suffix"]
