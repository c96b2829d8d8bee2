"""Lookahead decoding: a Jacobi window rides along in every forward."""

from methods.lookahead.drafter import Lookahead

__all__ = ["Lookahead"]
