"""Drafters, one file a method. They propose tokens; `harness` alone decides what is kept."""
