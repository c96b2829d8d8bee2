"""Many runs: launchers, and how far a sweep has come."""
