"""Engines that answer a request by other means than our own decoding loop."""
