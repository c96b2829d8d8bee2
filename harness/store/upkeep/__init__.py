"""What is done with whole stores: packing, migration and verification."""
