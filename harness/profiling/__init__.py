"""Timing of the target's steps and of drafters on this machine."""
