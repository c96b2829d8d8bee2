"""What is read from a store is not trusted: its paths, types, arithmetic and chain are checked here."""
