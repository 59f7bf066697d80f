"""Finds the columns of a data set that hold the images and the labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Image, Value
from datasets.features import Features

from ..errors import DataError

IMAGE_COLUMNS = ("image", "img", "images", "pixel_values", "picture", "photo")
# `coarse_label` is left out on purpose: a plain "label" never means CIFAR-100's twenty superclasses.
LABEL_COLUMNS = ("label", "fine_label", "labels", "class", "target", "category")


def find_image_column(features: Features, named: str | None = None) -> str:
    """The column with the images: `named`, else the only one of type Image, else the only one with a usual name."""
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
    """The column with the labels: `named`, else the only ClassLabel, else the only one with a usual name."""
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


def class_indices(values: Sequence[Any], column: str) -> np.ndarray:
    """
    Labels as whole numbers `(N,)` of 64 bits. Numbers with a point, as spreadsheets write them, are whole if 1.0 is.

    Raises:
        DataError: If a label is missing, or is no whole number.
    """
    found = np.asarray(values)
    if np.can_cast(found.dtype, np.int64):
        return found.astype(np.int64)
    for row, value in enumerate(values):
        if is_missing(value):
            raise DataError(f"The column {column!r} has images without a label, such as row {row}. Leave them out.")
        # Infinity is no class either, and none has a number of more than 64 bits.
        if isinstance(value, str) or not -(2**63) <= value < 2**63 or value != int(value):
            raise DataError(
                f"The column {column!r} holds {value!r} (row {row}), which is no class. Labels should be names, or "
                "whole numbers from 0 on."
            )
    return found.astype(np.int64)


def is_missing(value: Any) -> bool:
    """Whether a cell holds no label: null, or what a table of numbers has in its place."""
    return value is None or value != value


def _holds_labels(feature) -> bool:
    kinds = ("int", "uint", "bool", "float", "string", "large_string")
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
