"""The networks of block drafters: the backbone, and the parts that some heads have beside it."""
