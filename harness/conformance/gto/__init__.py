"""Recorded cases of GTO's rules: rewards of trees, advantages of groups, the loss and its gradient."""
