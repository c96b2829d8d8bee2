"""EAGLE-1, EAGLE-2 and EAGLE-3: trained heads that draft trees."""

from methods.eagle.drafter import Eagle

__all__ = ["Eagle"]
