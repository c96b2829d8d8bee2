"""SpecBlock: single calls, trees, whole rounds and training losses of the official code."""
