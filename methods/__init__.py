"""Drafters, one folder per method. They propose tokens; `harness` alone decides which are kept.

`methods.NAME` exports the class that a YAML of `conf/method` names. No method imports another: what several
need lies in `methods.shared`. `heads/` holds trained weights, no code.
"""
