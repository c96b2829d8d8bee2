"""Conformance: compares our methods with recorded cases of official code.

Each folder is a family of cases; its module `family` says which cases it `claims` and how it `checks` them.
"""
