"""The questions: tasks, their sources, and conversations."""
