"""Drafting that weighs confidence against measured time: CAST (Hong et al. 2025, arXiv 2510.26577)."""

from methods.shared.cost_aware.thresholds import Constants, SpeedupThreshold
from methods.shared.cost_aware.tree import CostAwareTree

__all__ = ["Constants", "CostAwareTree", "SpeedupThreshold"]
