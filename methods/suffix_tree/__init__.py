"""Suffix tree: the likeliest continuation by counts of what followed."""

from methods.suffix_tree.drafter import SuffixTree

__all__ = ["SuffixTree"]
