"""The questions: conversations, tasks and the sources that they are read from."""
