"""How a forward runs: slot cache, attention, linear layers, compiled steps and CUDA graphs."""
