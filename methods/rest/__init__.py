"""REST: continuations from a datastore."""

from methods.rest.drafter import Rest

__all__ = ["Rest"]
