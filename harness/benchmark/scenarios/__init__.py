"""How the turns of a conversation are played."""
