"""The command line: runs Hydra applications and the report command, and ends them with an exit status."""
