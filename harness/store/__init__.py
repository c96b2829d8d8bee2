"""Runs on disk: records, journals, archives and identities, and the lock that keeps one writer per run."""
