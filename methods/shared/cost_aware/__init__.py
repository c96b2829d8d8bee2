"""Drafting that weighs confidence against measured time, as CAST does (Hong et al. 2025, arXiv
2510.26577)."""
