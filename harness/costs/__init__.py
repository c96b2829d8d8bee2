"""What a forward and a drafter cost on one machine, and what follows from it."""
