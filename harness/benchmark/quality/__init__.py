"""The quality of output that may differ from vanilla's."""
