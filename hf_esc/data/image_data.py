"""Loads a labelled image data set, finds its columns and its classes, and selects images by label."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import torch
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Value,
    get_dataset_config_names,
    load_dataset,
    load_from_disk,
)

from .. import embedded
from ..errors import DataError, ForgetSetError, LabelError, warn
from ..loading import refuse_missing_folder, why_not_loaded
from .batches import Batch, image_batches
from .columns import class_indices, find_image_column, find_label_column, is_missing
from .folders import how_to_load
from .labels import UNCLEAR, class_names, erased_labels, match_labels, model_label_names, resolve_labels

TEST_SPLITS = ("test", "validation", "valid", "val")


@dataclass(frozen=True)
class ImageData:
    """
    A labelled image data set whose columns and classes are known.

    Args:
        name (`str`): The name that the user gave.
        train (`datasets.Dataset`): Training images.
        test (`datasets.Dataset`, *optional*): Test images. None if the data set has no test split.
        image_column (`str`): The column with the images.
        label_column (`str`): The column with the class indices.
        label_names (`list[str]`, *optional*): Class names by index. None if the classes only have numbers.
        num_labels (`int`): Number of classes.
        hub_id (`str`, *optional*): Its id on the Hub, if it came from there.
        left_out (`frozenset[int]`): Classes whose images were left out; see `without_unclear`.
    """

    name: str
    train: Dataset
    test: Dataset | None
    image_column: str
    label_column: str
    label_names: list[str] | None
    num_labels: int
    hub_id: str | None = None
    left_out: frozenset[int] = frozenset()

    def select(self, split: Dataset, labels: Iterable[int], *, keep: bool = True) -> Dataset:
        """The images of `split` whose class is among `labels` (with `keep=False`: is not), in their order."""
        chosen = np.isin(np.asarray(split.with_format(None)[self.label_column][:]), list(labels))
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
            ForgetSetError: If one of the classes has no training image. It would stay and yet look forgotten.
        """
        labels = list(labels)
        there = set(np.unique(np.asarray(self.train.with_format(None)[self.label_column][:])).tolist())
        if absent := [label for label in labels if label not in there]:
            names = [self.label_names[label] if self.label_names else label for label in absent]
            raise ForgetSetError(f"The forget set is empty for {names}: {self.name!r} has no training image of them.")
        return self.select(self.train, labels)

    def rows(self, rows: Sequence[int], *, keep: bool = True) -> Dataset:
        """The training images in these rows (with `keep=False`: in all others), of any class, in their order."""
        chosen = np.isin(np.arange(len(self.train)), list(rows))
        return self.train.select(np.flatnonzero(chosen if keep else ~chosen))

    def rows_to_forget(self, fraction: float, seed: int = 0) -> list[int]:
        """
        Draw rows of the training split to forget, of any class. Returns them in ascending order.

        Args:
            fraction (`float`): Fraction of the training images, above 0 and below 1.
            seed (`int`, defaults to 0): Seed of the draw. The same seed draws the same rows.

        Raises:
            ForgetSetError: If the fraction or the seed is out of its range, or the fraction comes to no row or to all
                rows.
        """
        if seed < 0:
            raise ForgetSetError(f"The seed of the draw should be 0 or more, not {seed}.")
        if not 0 < fraction < 1:
            raise ForgetSetError(f"The fraction of images to forget should be above 0 and below 1, not {fraction}.")
        total = len(self.train)
        count = round(fraction * total)
        if not 0 < count < total:
            raise ForgetSetError(
                f"A fraction of {fraction} of {total} training images comes to {count} of them. Use another fraction."
            )
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
        return order[:count].sort().values.tolist()

    def check_rows(self, rows: Iterable[int]) -> list[int]:
        """
        Check the rows of the training split that a user named to be forgotten. Returns them in ascending order.

        Raises:
            ForgetSetError: If no row is named, a row does not exist or is named twice, or no other row would be left.
        """
        named, total = [int(row) for row in rows], len(self.train)
        if not named:
            raise ForgetSetError(f"The forget set is empty: name at least one of the {total} training images.")
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
        The class indices of the data set that a user's labels mean, for the model with this `config`.

        Raises:
            LabelError: As in [`resolve_labels`] and [`match_labels`], and if no class of the model would be left.
        """
        names = self.label_names or model_label_names(config)
        mapping = self._matched(config)
        same = self.label_names is None or mapping == list(range(len(mapping)))
        labels = resolve_labels(requested, names, self.num_labels, numbers=same)
        self._refuse_unclear(mapping, labels, config)
        if len({mapping[label] for label in labels} | erased_labels(config)) == config.num_labels:
            raise LabelError(
                f"All {config.num_labels} classes of the model are to be forgotten, which leaves nothing to keep. "
                "Delete the model instead, or name fewer classes."
            )
        return labels

    def labels_in(self, config) -> list[int]:
        """
        For each class of the data set, its class in the model with this `config`; see [`match_labels`].

        `UNCLEAR` stands for a class that several of the model could be. Only `without_unclear` leaves some.
        """
        mapping = self._matched(config)
        self._refuse_unclear(mapping, set(range(self.num_labels)) - self.left_out, config)
        return mapping

    def labels_from(self, config, labels: Iterable[int]) -> list[int]:
        """The data set's classes that are `labels` in the model with this `config`: the way back of `labels_in`."""
        wanted = set(labels)
        return [label for label, there in enumerate(self.labels_in(config)) if there in wanted]

    def without_unclear(self, config) -> ImageData:
        """
        This data set without the images of classes whose name several classes of the model have, with a warning.

        The other classes can be used then. Nothing tells which class of the model these images are of.
        """
        mapping = self._matched(config)
        gone = {label for label, there in enumerate(mapping) if there == UNCLEAR} - self.left_out
        if not gone:
            return self
        names = ", ".join(repr(self.label_names[label]) for label in sorted(gone)) if self.label_names else ""
        warn(
            f"Several classes of the model are called {names}. The images of {self.name!r} of that name are left out. "
            "To use them, rename one side: the model's `id2label`, or the data set's ClassLabel names."
        )
        train, test = (split and self.select(split, gone, keep=False) for split in (self.train, self.test))
        return replace(self, train=train, test=test, left_out=self.left_out | gone)

    def _matched(self, config) -> list[int]:
        names = model_label_names(config)
        return match_labels(self.label_names, names, self.num_labels, config.num_labels, unclear=True)

    def _refuse_unclear(self, mapping: Sequence[int], labels: Iterable[int], config) -> None:
        """Raise a [`LabelError`] with both sides if one of these classes is unclear."""
        if any(mapping[label] == UNCLEAR for label in labels):
            match_labels(self.label_names, model_label_names(config), self.num_labels, config.num_labels)


def load_images(
    name: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    revision: str | None = None,
    dataset_config: str | None = None,
) -> ImageData:
    """
    Load a labelled image data set.

    Args:
        name (`str`): `"embedded"`, a folder (of parquet files, of images in one folder per class, or saved by
            `save_to_disk`), or an id on the Hub.
        image_column (`str`, *optional*): The column with the images. By default, it is found if there is one
            candidate.
        label_column (`str`, *optional*): The column with the labels. By default, it is found if there is one
            candidate other than `coarse_label`.
        revision (`str`, *optional*): Revision on the Hub.
        dataset_config (`str`, *optional*): The configuration of a data set that has several.

    Returns:
        [`ImageData`]

    Raises:
        DataError: If there is no such data set, it has no training split, or its columns are not clear.
    """
    splits = _load_splits(name, revision, dataset_config)
    # One split of another name is all there is, unless its name says that it is not for training.
    train_name = "train" if "train" in splits or len(splits) > 1 else next(iter(splits))
    if train_name not in splits or train_name in TEST_SPLITS:
        raise DataError(
            f"The data set {name!r} has no `train` split, only {', '.join(map(repr, splits))}. hf_esc "
            "forgets images that the model was trained on. If these are such images, call their split `train`."
        )
    train, test = splits[train_name], None
    if len(train) == 0:
        raise DataError(f"The `{train_name}` split of the data set {name!r} is empty.")
    image_column = find_image_column(train.features, image_column)
    label_column = find_label_column(train.features, label_column)
    train, names = _with_class_indices(name, train, label_column)
    for split in TEST_SPLITS:
        if split not in splits or split == train_name or not len(splits[split]):
            continue
        if image_column not in splits[split].features:
            raise DataError(
                f"The `{split}` split of {name!r} has no column {image_column!r}, and its training split has."
            )
        if label_column not in splits[split].features or all(map(_is_held_back, splits[split][label_column][:])):
            # As in a competition.
            warn(f"The images of the `{split}` split of {name!r} have no labels. They are left out.")
            continue
        candidate, test_names = _with_class_indices(name, splits[split], label_column, names)
        if test_names != names:
            raise DataError(
                f"The `{split}` split of {name!r} names its classes {test_names}, and the training split {names}. "
                "Cast both to one ClassLabel."
            )
        test = candidate
        break
    found = [np.asarray(split[label_column][:]) for split in (train, test) if split is not None]
    num_labels = len(names) if names else int(max(labels.max() for labels in found)) + 1
    if min(labels.min() for labels in found) < 0 or max(labels.max() for labels in found) >= num_labels:
        raise DataError(
            f"The column {label_column!r} of {name!r} has values outside of its classes, which are 0 to "
            f"{num_labels - 1}. Correct the labels."
        )
    if isinstance(feature := train.features[label_column], ClassLabel):
        names = class_names(feature.names)
    hub_id = None if name == embedded.NAME or Path(name).exists() else name
    return ImageData(name, train, test, image_column, label_column, names, num_labels, hub_id)


def load_pictures(name: str) -> Dataset:
    """
    The images of a data set, with or without labels: those of its training split, or of its only split.

    Raises:
        DataError: If the data set cannot be loaded.
    """
    splits = _load_splits(name, None, None)
    return splits["train"] if "train" in splits else next(iter(splits.values()))


def _with_class_indices(
    name: str, split: Dataset, column: str, names: list[str] | None = None
) -> tuple[Dataset, list[str] | None]:
    """The split with class indices in its label column, and the names of the classes, or None if it has none."""
    feature = split.features[column]
    values = split[column][:]
    if any(map(is_missing, values)):
        raise DataError(
            f"The column {column!r} of {name!r} has images without a label. Leave them out, or label them."
        )
    if isinstance(feature, ClassLabel):
        return split, list(feature.names)
    if feature.dtype.startswith("float"):  # of a table of numbers, in which a label may have been missing
        whole = class_indices(values, column).tolist()
        return split.remove_columns(column).add_column(column, whole, feature=Value("int64")), None
    if feature.dtype not in ("string", "large_string"):
        return split, None
    if names is None:
        numbers = all(value.isdecimal() for value in set(values))
        names = sorted(set(values), key=int if numbers else None)
    if strange := set(values) - set(names):
        raise DataError(
            f"The test split of {name!r} has labels that the training split has not: {sorted(strange)[:5]}. Leave "
            "these images out, or add their classes to the training split."
        )
    # Before 5.2, casting to `ClassLabel` takes the text "3" for the index 3 and not for the class of that name.
    index = {class_name: number for number, class_name in enumerate(names)}
    indices = [index[value] for value in values]
    return split.remove_columns(column).add_column(column, indices, feature=ClassLabel(names=names)), names


def _is_held_back(label: Any) -> bool:
    return is_missing(label) or label == -1


def _load_splits(name: str, revision: str | None, config: str | None) -> dict[str, Dataset]:
    folder = Path(name)
    on_disk = (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()
    if config is not None and (name == embedded.NAME or on_disk):
        raise DataError(f"The data set {name!r} has no configurations. Leave out {config!r} (`dataset_config`).")
    if name == embedded.NAME:
        # Read straight from the package, without a copy in the datasets cache.
        return {path.stem: Dataset(parquet.read_table(path)) for path in sorted(embedded.DATASET.glob("*.parquet"))}
    try:
        refuse_missing_folder(name)
        if on_disk:
            loaded = load_from_disk(name)
        elif config is None and folder.is_dir() and (arguments := how_to_load(folder)) is not None:
            loaded = load_dataset("imagefolder", **arguments)
        else:
            loaded = load_dataset(name, config, revision=revision)
    except DataError:
        raise
    except Exception as error:  # `datasets` raises a dozen types of error, from every file format that it reads
        raise DataError(
            f"The data set {name!r} cannot be loaded: {_why_not(error, name, revision)} It should be "
            "`embedded`, a folder with parquet files or with one folder of images per class, or an id on the Hub."
        ) from error
    return dict(loaded) if isinstance(loaded, DatasetDict) else {"train": loaded}


def _why_not(error: Exception, name: str, revision: str | None) -> str:
    if isinstance(error, ValueError) and "Config name is missing" in str(error):
        configs = get_dataset_config_names(name, revision=revision)
        return (
            f"It has several configurations, {', '.join(map(repr, configs))}. Name one with `dataset_config` "
            "(`--dataset-config` on the command line)."
        )
    kind = f"{type(error).__name__}: " if Path(name).exists() else ""
    return f"{kind}{why_not_loaded(error, name)}"
