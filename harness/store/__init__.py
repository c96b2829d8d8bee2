"""Runs on the disk: records, journal, columns, archives, and who may write."""
