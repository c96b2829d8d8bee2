"""How a forward runs: slot cache, attention, linear layers, compiled programs and CUDA graphs."""
