"""
Which images are to be forgotten: load a data set, find its columns, split it by label, and turn images into batches.

Images come without augmentation, in RGB as `pipeline("image-classification")` reads them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow.parquet as parquet
import torch
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Image,
    IterableDataset,
    Value,
    load_dataset,
    load_from_disk,
)
from datasets.features import Features
from torch.utils.data import DataLoader

from . import embedded
from .errors import DataError, ForgetSetError, ImageError, LabelError
from .labels import erased_labels, match_labels, model_label_names, resolve_labels

IMAGE_COLUMNS = ("image", "img", "images", "pixel_values", "picture", "photo")
# `coarse_label` is left out on purpose: CIFAR-100's twenty superclasses are never what a plain "label" means.
LABEL_COLUMNS = ("label", "fine_label", "labels", "class", "target", "category")
TEST_SPLITS = ("test", "validation", "valid", "val")

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class ImageData:
    """
    A labelled image data set whose columns and classes are known.

    Args:
        name (`str`): What the user called it.
        train (`datasets.Dataset`): Training images.
        test (`datasets.Dataset`, *optional*): Test images, None where the data set has no such split.
        image_column (`str`): The column with the images.
        label_column (`str`): The column with the class indices.
        label_names (`list[str]`, *optional*): Class names by index, None where there are numbers alone.
        num_labels (`int`): Number of classes.
        hub_id (`str`, *optional*): Its id on the Hub, where it came from there.
    """

    name: str
    train: Dataset
    test: Dataset | None
    image_column: str
    label_column: str
    label_names: list[str] | None
    num_labels: int
    hub_id: str | None = None

    def select(self, split: Dataset, labels: Iterable[int], *, keep: bool = True) -> Dataset:
        """The images of `split` whose class is (`keep=False`: is not) among `labels`, in their order."""
        chosen = np.isin(np.asarray(split.with_format(None)[self.label_column]), list(labels))
        return split.select(np.flatnonzero(chosen if keep else ~chosen))

    def batches(
        self, split: Dataset, processor: Any, *, batch_size: int, num_workers: int = 0, num_channels: int = 3
    ) -> Iterator[Batch]:
        """[`image_batches`] of a split, with the data set's labels."""
        return image_batches(
            split,
            processor,
            image_column=self.image_column,
            label_column=self.label_column,
            batch_size=batch_size,
            num_workers=num_workers,
            num_channels=num_channels,
        )

    def forget_set(self, labels: Iterable[int]) -> Dataset:
        """
        The training images of these classes.

        Raises:
            ForgetSetError: If one of them has none: it would stay, and look forgotten.
        """
        labels = list(labels)
        there = set(np.unique(np.asarray(self.train.with_format(None)[self.label_column])).tolist())
        if absent := [label for label in labels if label not in there]:
            names = [self.label_names[label] if self.label_names else label for label in absent]
            raise ForgetSetError(f"The forget set is empty for {names}: {self.name!r} has no training image of them.")
        return self.select(self.train, labels)

    def rows(self, rows: Sequence[int], *, keep: bool = True) -> Dataset:
        """The training images in these rows (`keep=False`: in all others), whatever their classes, in their order."""
        chosen = np.isin(np.arange(len(self.train)), list(rows))
        return self.train.select(np.flatnonzero(chosen if keep else ~chosen))

    def rows_to_forget(self, fraction: float, seed: int = 0) -> list[int]:
        """
        Rows of the training split that are drawn to be forgotten, whatever their classes, in ascending order.

        Args:
            fraction (`float`): Share of the training images, above 0 and below 1.
            seed (`int`, defaults to 0): Of the draw. The same seed draws the same rows.

        Raises:
            ForgetSetError: If the share or the seed is out of its range, or it comes to no row or to all of them.
        """
        if seed < 0:
            raise ForgetSetError(f"The seed of the draw is 0 or more, not {seed}.")
        if not 0 < fraction < 1:
            raise ForgetSetError(f"The share of the images to forget is above 0 and below 1, not {fraction}.")
        total = len(self.train)
        count = round(fraction * total)
        if not 0 < count < total:
            raise ForgetSetError(
                f"The share {fraction} of {total} training images comes to {count} of them. Take another share."
            )
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
        return order[:count].sort().values.tolist()

    def check_rows(self, rows: Iterable[int]) -> list[int]:
        """
        Rows of the training split that somebody named to be forgotten, in ascending order.

        Raises:
            ForgetSetError: If there is none, one is not there or named twice, or no other would be left.
        """
        named, total = [int(row) for row in rows], len(self.train)
        if not named:
            raise ForgetSetError(f"The forget set is empty: name one at least of the {total} training images.")
        if wrong := [row for row in named if not 0 <= row < total]:
            raise ForgetSetError(
                f"There is no row {wrong[0]}: rows of the {total} training images go up to {total - 1}."
            )
        found, times = np.unique(named, return_counts=True)
        if len(found) < len(named):
            raise ForgetSetError(f"Row {found[times > 1][0]} is named more than once. Name each row once.")
        if len(found) == total:
            raise ForgetSetError(f"All {total} training images are to be forgotten, which leaves nothing to keep.")
        return found.tolist()

    def resolve(self, requested: str | int | Iterable[str | int], config) -> list[int]:
        """
        The data set's class indices that a user's labels mean, for the model with this `config`.

        Raises:
            LabelError: As [`resolve_labels`] and [`match_labels`], and if no class of the model would be left.
        """
        names = self.label_names or model_label_names(config)
        mapping = self.labels_in(config)
        labels = resolve_labels(requested, names, self.num_labels)
        if self.label_names and mapping != list(range(len(mapping))):
            written = [requested] if isinstance(requested, str | int) else list(requested)
            numbers = [
                part for label in written for part in str(label).split(",") if part.strip().lstrip("#").isdigit()
            ]
            if strange := [part for part in numbers if part.strip() not in self.label_names]:
                number = int(strange[0].strip().lstrip("#"))
                raise LabelError(
                    f"Class {number} is {self.label_names[number]!r} in the data set and another one in the model, "
                    f"which "
                    "numbers its classes otherwise. Use the name."
                )
        if len({mapping[label] for label in labels} | erased_labels(config)) == config.num_labels:
            raise LabelError(
                f"All {config.num_labels} classes of the model are to be forgotten, which leaves nothing to keep. "
                f"Delete "
                "the model instead, or name fewer classes."
            )
        return labels

    def labels_in(self, config) -> list[int]:
        """For each class of the data set, its class in the model with this `config`; see [`match_labels`]."""
        return match_labels(self.label_names, model_label_names(config), self.num_labels, config.num_labels)


def load_images(
    name: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    revision: str | None = None,
) -> ImageData:
    """
    Load a labelled image data set.

    Args:
        name (`str`): `"embedded"`, a folder (of parquet files, of images in one folder per class, or saved by
            `save_to_disk`), or an id on the Hub.
        image_column (`str`, *optional*): The column with the images; found where there is one candidate.
        label_column (`str`, *optional*): The column with the labels; found likewise, never `coarse_label`.
        revision (`str`, *optional*): Revision on the Hub.

    Returns:
        [`ImageData`]

    Raises:
        DataError: If there is no such data set, it has no training split, or its columns are not clear.
    """
    splits = _load_splits(name, revision)
    train_name = "train" if "train" in splits or len(splits) > 1 else next(iter(splits))
    if train_name not in splits:
        raise DataError(f"The data set {name!r} has no `train` split, only {', '.join(map(repr, splits))}.")
    train, test = splits[train_name], None
    if len(train) == 0:
        raise DataError(f"The `{train_name}` split of the data set {name!r} is empty.")
    image_column = find_image_column(train.features, image_column)
    label_column = find_label_column(train.features, label_column)
    train, names = _with_class_indices(name, train, label_column)
    for split in TEST_SPLITS:
        if split not in splits or split == train_name or not len(splits[split]):
            continue
        if missing := {image_column, label_column} - set(splits[split].features):
            raise DataError(
                f"The `{split}` split of {name!r} has no column {sorted(missing)}, which its training split has."
            )
        candidate, test_names = _with_class_indices(name, splits[split], label_column, names)
        if set(candidate[label_column]) == {-1}:
            continue  # images whose labels are held back, as in a competition
        if test_names != names:
            raise DataError(
                f"The `{split}` split of {name!r} names its classes {test_names}, and the training split {names}. "
                "Cast both to one ClassLabel."
            )
        test = candidate
        break
    found = [np.asarray(split[label_column]) for split in (train, test) if split is not None]
    num_labels = len(names) if names else int(max(labels.max() for labels in found)) + 1
    if min(labels.min() for labels in found) < 0 or max(labels.max() for labels in found) >= num_labels:
        raise DataError(
            f"The column {label_column!r} of {name!r} has values outside of its {num_labels} classes, from 0."
        )
    if isinstance(feature := train.features[label_column], ClassLabel):
        names = class_names(feature.names)
    hub_id = None if name == embedded.NAME or Path(name).exists() else name
    return ImageData(name, train, test, image_column, label_column, names, num_labels, hub_id)


def load_pictures(name: str) -> Dataset:
    """
    The pictures of a data set whatever their labels, of its training split or its only one.

    Raises:
        DataError: If it cannot be loaded.
    """
    splits = _load_splits(name, None)
    return splits["train"] if "train" in splits else next(iter(splits.values()))


def _with_class_indices(
    name: str, split: Dataset, column: str, names: list[str] | None = None
) -> tuple[Dataset, list[str] | None]:
    """A split whose label column holds class indices, and the classes' names where it has them."""
    feature = split.features[column]
    values = split[column]
    if any(value is None for value in values):
        raise DataError(f"The column {column!r} of {name!r} has images without a label.")
    if isinstance(feature, ClassLabel):
        return split, list(feature.names)
    if feature.dtype not in ("string", "large_string"):
        return split, None
    if names is None:
        numbers = all(value.isdigit() for value in set(values))
        names = sorted(set(values), key=int if numbers else None)
    if strange := set(values) - set(names):
        raise DataError(
            f"The test split of {name!r} has labels that the training split has not: {sorted(strange)[:5]}."
        )
    return split.cast_column(column, ClassLabel(names=names)), names


def _load_splits(name: str, revision: str | None) -> dict[str, Dataset]:
    if name == embedded.NAME:
        # Read straight from the package: no copy in the datasets cache, and no cache is needed.
        return {path.stem: Dataset(parquet.read_table(path)) for path in sorted(embedded.DATASET.glob("*.parquet"))}
    folder = Path(name)
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            loaded = load_from_disk(name)
        else:
            loaded = load_dataset(name, revision=revision)
    except Exception as error:  # what `datasets` raises ranges over a dozen types, from every file format it reads
        raise DataError(
            f"The data set {name!r} cannot be loaded: {type(error).__name__}: {str(error).rstrip('.')}. It should be "
            "`embedded`, a folder with parquet files or with one folder of images per class, or an id on the Hub."
        ) from error
    return dict(loaded) if isinstance(loaded, DatasetDict) else {"train": loaded}


def class_names(names: Sequence[str]) -> list[str] | None:
    """The names of classes, or None where they are "0", "1", "2", …, which are numbers."""
    return None if all(name == str(index) for index, name in enumerate(names)) else list(names)


def find_image_column(features: Features, named: str | None = None) -> str:
    """The column with the images: `named`, else the one of type Image, else the one with a usual name."""
    if named is None:
        typed = [column for column, feature in features.items() if isinstance(feature, Image)]
        named = _only_column(features, typed or [c for c in IMAGE_COLUMNS if c in features], "image")
    feature = features[_named_column(features, named, "image_column")]
    files = isinstance(feature, Value) and feature.dtype in ("binary", "large_binary", "string", "large_string")
    if not (isinstance(feature, Image) or files or (isinstance(feature, dict) and {"bytes", "path"} <= set(feature))):
        raise DataError(
            f"The column {named!r} holds {feature}, not images. For preprocessed tensors, pass batches of them "
            "instead of a data set, or name the column with the images with `image_column`."
        )
    return named


def find_label_column(features: Features, named: str | None = None) -> str:
    """The column with the labels: `named`, else the one of type ClassLabel, else the one with a usual name."""
    if named is not None:
        named = _named_column(features, named, "label_column")
        if not _holds_labels(features[named]):
            raise DataError(f"The column {named!r} holds {features[named]}, not one label per image.")
        return named
    return _only_column(features, usual_label_columns(features), "label")


def usual_label_columns(features: Features) -> list[str]:
    """The columns that could hold the labels: those of type ClassLabel, else those with a usual name."""
    typed = [c for c, feature in features.items() if isinstance(feature, ClassLabel) and c != "coarse_label"]
    return typed or [column for column in LABEL_COLUMNS if column in features and _holds_labels(features[column])]


def _holds_labels(feature) -> bool:
    kinds = ("int", "uint", "bool", "string", "large_string")
    return isinstance(feature, ClassLabel) or (isinstance(feature, Value) and feature.dtype.startswith(kinds))


def _named_column(features: Features, named: str, option: str) -> str:
    if named not in features:
        raise DataError(
            f"There is no column {named!r} (`{option}`). The columns are {', '.join(map(repr, features))}."
        )
    return named


def _only_column(features: Features, candidates: Sequence[str], kind: str) -> str:
    if len(candidates) == 1:
        return candidates[0]
    found = f"{len(candidates)} columns could hold the {kind}s: {', '.join(map(repr, candidates))}"
    if not candidates:
        found = f"No column that holds {kind}s was found among {', '.join(map(repr, features))}"
    raise DataError(f"{found}. Name it with `{kind}_column` (`--{kind}-column` on the command line).")


def image_channels(config) -> int:
    """How many channels the model with this `config` takes: 1 for grey pictures, else 3."""
    return getattr(getattr(config, "base_config", config), "num_channels", None) or 3


def picture_batch(processor, num_channels: int = 3) -> Batch:
    """A batch of one picture of noise, to find a model's head with where there is no image at hand."""
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
        batch_size (`int`, defaults to 32): Images in a batch; the last may hold fewer.
        num_workers (`int`, defaults to 0): Processes that read and preprocess.
        num_channels (`int`, defaults to 3): 1 turns the images to grey, anything else to RGB.
        share (`tuple[int, int]`, defaults to `(0, 1)`): `(i, n)` for the i-th of n processes, which gets every n-th
            batch from the i-th on.

    Yields:
        `dict` of `torch.Tensor`: What the processor gives (`pixel_values` of shape `(B, c, H, W)`), and `labels`
            `(B,)`.

    Raises:
        ImageError: If an image cannot be read; its number and file are named.
    """
    collate = ImageCollator(processor, image_column, label_column, "L" if num_channels == 1 else "RGB")
    # Transforms and formats are the user's, for training; what is erased are the images as they are.
    raw = dataset.with_format(None)
    if dataset.features is not None:
        # Bytes are decoded in `ImageCollator`, where a broken one can be named.
        raw = raw.cast_column(image_column, Image(decode=False))
    columns = [image_column] if label_column is None else [image_column, label_column]
    index, count = share
    own = torch.Generator()  # nothing is drawn, and yet a loader would take a seed from the caller's generator
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
    """Rows with their number, fetched a batch at a time."""

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
    """Numbered rows to a batch of tensors."""

    def __init__(self, processor, image_column: str, label_column: str | None, mode: str):
        self.processor = processor
        self.image_column = image_column
        self.label_column = label_column
        self.mode = mode
        self.decoder = Image()

    def __call__(self, rows: list[tuple[int, dict]]) -> Batch:
        images = [self._read(number, row[self.image_column]) for number, row in rows]
        batch = dict(self.processor(images=images, return_tensors="pt"))
        if self.label_column is not None:
            batch["labels"] = torch.tensor([row[self.label_column] for _, row in rows], dtype=torch.long)
        return batch

    def _read(self, number: int, value: Any):
        try:
            if value is None:
                raise ValueError("it is missing")
            image = value if isinstance(value, PIL.Image.Image) else self.decoder.decode_example(value)
            return image.convert(self.mode)
        except Exception as error:  # each image format has error types of its own
            path = value.get("path") if isinstance(value, dict) else None
            named = f" ({path})" if path else ""
            raise ImageError(f"Image {number}{named} cannot be read: {type(error).__name__}: {error}") from error


def ready_batches(batches: Iterable[Any]) -> Iterator[Batch]:
    """Pass on batches that hold tensors by name, and refuse anything else with its number."""
    for number, batch in enumerate(batches):
        if not hasattr(batch, "items") or not all(isinstance(value, torch.Tensor) for value in dict(batch).values()):
            raise ForgetSetError(
                f"Batch {number} of the forget set is a {type(batch).__name__}. A forget set is a "
                f"`datasets.Dataset` or "
                "`IterableDataset` with an image column, or an iterable of dicts of tensors such as "
                "{'pixel_values': tensor}."
            )
        if not batch or set(batch) == {"labels"}:
            raise ForgetSetError(f"Batch {number} of the forget set holds no images, only {sorted(batch)}.")
        if all(len(value) for value in dict(batch).values()):  # an empty batch says nothing
            yield dict(batch)
