"""Faults put into stores and into the processes that write them, and what becomes of the records."""
