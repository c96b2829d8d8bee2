"""FastEagle: a cascade of layers that guesses as many tokens in one call, and a tree with one backbone."""

from methods.fasteagle.drafter import FastEagle

__all__ = ["FastEagle"]
