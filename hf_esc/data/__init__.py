"""Reads labelled images: finds the data set, its columns and its classes, and makes batches of tensors."""

from .batches import image_batches, image_channels
from .image_data import ImageData, load_images, load_pictures

__all__ = ["ImageData", "image_batches", "image_channels", "load_images", "load_pictures"]
