"""Runs many configurations: launchers that outlive dead jobs, and the state of every cell of a sweep."""
