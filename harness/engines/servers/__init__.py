"""Engines that are servers: started here or found at a URL, and asked over HTTP."""
