"""Checks our drafters against recorded outputs of their official implementations."""
