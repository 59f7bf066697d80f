"""Erasures in closed form: ESC and remap, each from images to an erased model."""
