"""Group tree optimisation: drafters trained for the tree that they grow, not for one path."""
