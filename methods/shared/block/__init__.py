"""Block drafters (DFlash and its successors): one network, its checkpoints, and how a block is drafted."""
