"""Times the target's steps and the drafters on this machine."""
