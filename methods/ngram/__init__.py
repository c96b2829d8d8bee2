"""N-gram: prompt lookup."""

from methods.ngram.drafter import NGram

__all__ = ["NGram"]
