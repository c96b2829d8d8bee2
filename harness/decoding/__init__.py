"""The loop: propose, verify, accept, commit, observe."""
