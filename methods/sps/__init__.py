"""SpS: a second language model drafts."""

from methods.sps.drafter import SpS

__all__ = ["SpS"]
