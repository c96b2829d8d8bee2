"""Compiled programs: of a step, of a target's blocks, and of a drafter's part of a round."""
