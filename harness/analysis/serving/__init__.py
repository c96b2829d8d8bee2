"""Numbers of answers that a server streamed, as its users observe them."""
