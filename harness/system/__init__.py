"""The ground: clocks, probes, processes, locks, names, files and the console. Knows nothing of decoding."""
