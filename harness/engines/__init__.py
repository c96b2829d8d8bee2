"""Who decodes a request: our loop, and other people's."""
