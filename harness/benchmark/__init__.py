"""Measures one configuration, from plan to stored run: sessions, order of trials, verdicts, dry runs."""
