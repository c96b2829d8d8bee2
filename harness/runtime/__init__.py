"""How a forward runs: cache, attention, linear layers, compiled steps, CUDA graphs; all private torch API."""
