"""The ledger: what is counted and timed of every generation, declared once for both towers."""
