"""A benchmark harness for speculative decoding: `harness` owns truth, `methods` own guesses."""
