"""Drafting that weighs confidence against measured time: CAST (Hong et al. 2025, arXiv 2510.26577)."""
