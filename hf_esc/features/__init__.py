"""The features that a classifier's head reads: where they are, a stream of them, and the directions that they span."""
