"""DFlash, DFlash2 and DSpark: trained heads that draft a whole block in one call."""

from methods.dflash.drafter import DFlash

__all__ = ["DFlash"]
