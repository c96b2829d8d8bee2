"""PIA: a trie forest of the branches that followed each token."""

from methods.pia.drafter import PIA

__all__ = ["PIA"]
