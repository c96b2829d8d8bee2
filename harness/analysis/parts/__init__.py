"""Parts of a run: its calls, one after the other, and the categories of its prompts."""
