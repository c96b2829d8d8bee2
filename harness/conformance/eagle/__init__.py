"""Recorded cases of the official EAGLE code, greedy and sampled, and how ours is compared with them."""
