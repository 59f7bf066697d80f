"""
Images as batches of tensors, through an image processor.

Images are read without augmentation, in RGB, as `pipeline("image-classification")` reads them.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import PIL.Image
import torch
from datasets import Dataset, Image, IterableDataset
from torch.utils.data import DataLoader

from ..errors import ForgetSetError, ImageError, warn
from .columns import class_indices

Batch = dict[str, torch.Tensor]


def image_channels(config) -> int:
    """Number of image channels that the model with this `config` takes: 1 for grey images, else 3."""
    return getattr(getattr(config, "base_config", config), "num_channels", None) or 3


def picture_batch(processor, num_channels: int = 3) -> Batch:
    """A batch with one image of noise. It serves to find a model's head when no image is at hand."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    picture = PIL.Image.fromarray(noise).convert("L" if num_channels == 1 else "RGB")
    return dict(processor(images=[picture], return_tensors="pt"))


def image_batches(
    dataset: Dataset | IterableDataset,
    processor,
    *,
    image_column: str,
    label_column: str | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    num_channels: int = 3,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """
    Batches of preprocessed images, in the order of the data set, without augmentation.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): Images of any mode and size.
        processor: An image processor of transformers.
        image_column (`str`): The column with the images.
        label_column (`str`, *optional*): The column with class indices, passed on as `labels`.
        batch_size (`int`, defaults to 32): Images in a batch; the last batch may hold fewer.
        num_workers (`int`, defaults to 0): Processes that read and preprocess.
        num_channels (`int`, defaults to 3): 1 turns the images to grey, anything else to RGB.
        share (`tuple[int, int]`, defaults to `(0, 1)`): The shard `(i, n)` of process i of n, from 0, which takes
            batches i, i + n, i + 2n, …

    Yields:
        `dict` of `torch.Tensor`: The processor's output (`pixel_values` of shape `(B, c, H, W)`), and `labels` of
            shape `(B,)` if there is a label column.

    Raises:
        ImageError: If an image cannot be read. The message names its number and its file. Also if the image processor
            leaves the images of a batch in different sizes.

    Warns:
        UserWarning: If an image has more than 8 bits a channel, of which only 8 are read.
    """
    collate = ImageCollator(processor, image_column, label_column, "L" if num_channels == 1 else "RGB")
    # A user's transforms and formats are for training. Erasing needs the images as they are.
    raw = dataset.with_format(None)
    if dataset.features is not None:
        # `ImageCollator` decodes the bytes, because there an error can name the broken image.
        raw = raw.cast_column(image_column, Image(decode=False))
    columns = [image_column] if label_column is None else [image_column, label_column]
    index, count = share
    own = torch.Generator()  # a loader draws a seed even if it shuffles nothing; this spares the caller's generator
    if isinstance(dataset, IterableDataset):
        stream = _NumberedStream(raw.select_columns(columns))
        batches = DataLoader(stream, batch_size=batch_size, collate_fn=collate, num_workers=num_workers, generator=own)
        yield from islice(batches, index, None, count)
        return
    rows = [list(range(start, min(start + batch_size, len(raw)))) for start in range(0, len(raw), batch_size)]
    source: Any = NumberedRows(raw.select_columns(columns))
    yield from DataLoader(
        source, batch_sampler=rows[index::count], collate_fn=collate, num_workers=num_workers, generator=own
    )


class NumberedRows(torch.utils.data.Dataset):
    """Rows with their numbers, fetched one batch at a time."""

    def __init__(self, rows: Dataset):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, numbers: list[int]) -> list[tuple[int, dict]]:
        return list(zip(numbers, self.rows.__getitems__(numbers), strict=True))


class _NumberedStream(torch.utils.data.IterableDataset):
    def __init__(self, rows: IterableDataset):
        self.rows = rows

    def __iter__(self):
        return enumerate(self.rows)


class ImageCollator:
    """Turns numbered rows into a batch of tensors."""

    def __init__(self, processor, image_column: str, label_column: str | None, mode: str):
        self.processor = processor
        self.image_column = image_column
        self.label_column = label_column
        self.mode = mode
        self.decoder = Image()
        self._warned = False

    def __call__(self, rows: list[tuple[int, dict]]) -> Batch:
        images = [self._read(number, row[self.image_column]) for number, row in rows]
        try:
            batch = dict(self.processor(images=images, return_tensors="pt"))
        except (ValueError, RuntimeError, TypeError) as error:
            raise self._refused([number for number, _ in rows], images, error) from error
        if self.label_column is not None:
            labels = [row[self.label_column] for _, row in rows]
            batch["labels"] = torch.from_numpy(class_indices(labels, self.label_column))
        return batch

    def _read(self, number: int, value: Any):
        try:
            if value is None:
                raise ValueError("it is missing")
            image = value if isinstance(value, PIL.Image.Image) else self.decoder.decode_example(value)
            self._warn_if_clipped(number, image)
            return image.convert(self.mode)
        except Exception as error:  # every image format raises its own types of error
            path = value.get("path") if isinstance(value, dict) else None
            named = f" ({path})" if path else ""
            raise ImageError(f"Image {number}{named} cannot be read: {type(error).__name__}: {error}") from error

    def _warn_if_clipped(self, number: int, image: PIL.Image.Image) -> None:
        """Pillow turns all values above 255 into white, in `pipeline` too."""
        if self._warned or not image.mode.startswith(("I", "F")):
            return
        highest = np.asarray(image).max()
        if highest <= 255:
            return
        self._warned = True
        warn(
            f"Image {number} has values up to {highest} (mode {image.mode}). Those above 255 are read as white, as "
            "`pipeline` does. If the model was trained on these images scaled to 8 bits, scale them first."
        )

    def _refused(self, numbers: list[int], images: list[PIL.Image.Image], error: Exception) -> ImageError:
        """The error for images that the processor does not take, or does not bring to one size."""
        sizes: dict[str, int] = {}
        for number, image in zip(numbers, images, strict=True):
            try:
                alone = dict(self.processor(images=[image], return_tensors="pt"))
            except (ValueError, RuntimeError, TypeError):
                return ImageError(
                    f"Image {number} ({image.size[0]} x {image.size[1]}) is not taken by the processor: {error}"
                )
            sizes.setdefault(str([tuple(value.shape[1:]) for value in alone.values()]), number)
        return different_sizes(list(sizes.values()), list(sizes))


def different_sizes(numbers: list[int], sizes: list[str]) -> ImageError:
    """The error for images that the processor leaves in different sizes."""
    return ImageError(
        f"The image processor leaves the images in different sizes, such as {sizes[0]} and {sizes[1]} (images "
        f"{numbers[0]} and {numbers[1]}), which make no batch. Give it one size in preprocessor_config.json: `size` "
        "with a height and a width, or `do_center_crop` with a `crop_size`. Where nothing is trained, `batch_size=1` "
        "(`--batch-size 1`) does too."
    )


def ready_batches(batches: Iterable[Any]) -> Iterator[Batch]:
    """Yield batches that are dicts of tensors. Raise a [`ForgetSetError`] with the number of any other batch."""
    for number, batch in enumerate(batches):
        if not hasattr(batch, "items") or not all(isinstance(value, torch.Tensor) for value in dict(batch).values()):
            raise ForgetSetError(
                f"Batch {number} of the forget set is a {type(batch).__name__}. A forget set is a `datasets.Dataset` "
                "or `IterableDataset` with an image column, or an iterable of dicts of tensors such as "
                "{'pixel_values': tensor}."
            )
        if not batch or set(batch) == {"labels"}:
            raise ForgetSetError(
                f"Batch {number} of the forget set holds no images, only {sorted(batch)}. Give images such as "
                "`pixel_values`."
            )
        if all(len(value) for value in dict(batch).values()):  # empty batches are skipped
            yield dict(batch)
