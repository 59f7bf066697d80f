"""What every training to forget shares, and ESC-T, which trains a mask."""
