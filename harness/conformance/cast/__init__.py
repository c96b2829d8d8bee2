"""Recorded cases of CAST's rules: marginal confidence against marginal time."""
