"""Recorded cases of EAGLE-3 heads with the norms of EAGLE-3.1, as speculators trains them."""
