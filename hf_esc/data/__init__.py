"""Images and their labels: which data set, which columns, which classes, and how they become batches."""

from .batches import image_batches, image_channels
from .image_data import ImageData, load_images, load_pictures

__all__ = ["ImageData", "image_batches", "image_channels", "load_images", "load_pictures"]
