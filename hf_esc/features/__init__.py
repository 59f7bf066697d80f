"""What the head of a classifier reads: where it is, what passes there, and the directions that it spans."""
