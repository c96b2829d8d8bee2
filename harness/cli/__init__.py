"""The command line: Hydra applications, the report command, how a command ends."""
