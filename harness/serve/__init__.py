"""Our loop as an OpenAI-compatible server, so that other people's clients can measure its methods."""
