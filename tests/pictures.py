"""Small synthetic pictures, as files and as data sets: each class has a colour of its own."""

import io
from collections.abc import Sequence

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Pillow

NAMES = ["cat", "dog", "bird", "fish"]
COLOURS = ((220, 40, 40), (40, 220, 40), (40, 40, 220), (200, 200, 40))


def picture(label: int = 0, seed: int = 0, size: tuple[int, int] = (16, 16)) -> Pillow.Image:
    """A noisy RGB picture of (width, height) `size` in the colour of its label."""
    noise = np.random.default_rng(seed).integers(-40, 40, (size[1], size[0], 3))
    return Pillow.fromarray(np.clip(noise + COLOURS[label % len(COLOURS)], 0, 255).astype(np.uint8))


def encoded(image: Pillow.Image, file_format: str = "PNG") -> dict:
    """The picture as a data set stores it."""
    buffer = io.BytesIO()
    image.save(buffer, file_format)
    return {"bytes": buffer.getvalue(), "path": None}


def labelled(labels: Sequence[int], names: Sequence[str] | None = None) -> Dataset:
    """One picture for each label, with a ClassLabel where there are names and plain numbers otherwise."""
    feature = ClassLabel(names=list(names)) if names else Value("int64")
    rows = {"image": [encoded(picture(label, seed)) for seed, label in enumerate(labels)], "label": list(labels)}
    return Dataset.from_dict(rows, features=Features({"image": Image(), "label": feature}))
