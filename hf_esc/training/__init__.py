"""What all trainings share that make a model forget, and ESC-T, which trains a mask."""
