"""What a method implements: drafts, trees, and the drafter's interface."""
