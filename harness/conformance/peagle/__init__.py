"""Recorded cases of P-EAGLE heads, as speculators trains them."""
