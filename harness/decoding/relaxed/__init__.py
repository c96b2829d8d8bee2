"""Acceptors that also keep tokens which the target would not have drawn; none of them is lossless."""
