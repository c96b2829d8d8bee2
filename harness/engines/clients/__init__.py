"""How a server is asked: one module per dialect, and when requests are sent."""
