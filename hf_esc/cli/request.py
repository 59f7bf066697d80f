"""What is to be forgotten: classes, or training images of any class. One place for `erase`, `train` and `evaluate`."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LabelError, OptionError
from ..methods import IN_FRONT, Method
from .terminal import say

if TYPE_CHECKING:
    from datasets import Dataset

    from ..data.image_data import ImageData

WAYS = "`--forget LABEL`, `--forget-fraction FRACTION` or `--forget-indices FILE|ROW,ROW`"


@dataclass(frozen=True)
class Wish:
    """
    What a user wants to be forgotten, as it was written.

    Args:
        forget (`list[str]`, *optional*): Classes.
        fraction (`float`, *optional*): A fraction of the training images, drawn at random.
        seed (`int`, *optional*): Of that draw.
        rows (`list[int]`, *optional*): Rows of the training split.

    Raises:
        OptionError: If they do not go together.
    """

    forget: list[str] | None = None
    fraction: float | None = None
    seed: int | None = None
    rows: list[int] | None = None

    def __post_init__(self):
        ways = [way for way in (self.forget or None, self.fraction, self.rows) if way is not None]
        if len(ways) > 1:
            raise OptionError(f"Name what is to be forgotten in one way: {WAYS}.")
        if self.seed is not None and self.fraction is None:
            raise OptionError("`--forget-seed` is that of the draw of `--forget-fraction`. Leave it out.")

    def __bool__(self) -> bool:
        return bool(self.forget) or self.of_images

    @property
    def of_images(self) -> bool:
        """Whether it is images of classes that stay."""
        return self.fraction is not None or self.rows is not None

    def needed(self) -> Wish:
        """This, which has to name something."""
        if not self:
            raise OptionError(f"What is to be forgotten? Name it with {WAYS}.")
        return self

    def found_early(self, data: ImageData, config: Any) -> Request | None:
        """
        The same as `found_in`, from a configuration, before the weights are read.

        None of a checkpoint that may have no head: its labels mean nothing, and to load it says so.
        """
        from ..modeling.configuration_esc import is_erased

        classifier = any("ImageClassification" in name for name in getattr(config, "architectures", None) or ())
        return self.found_in(data, config) if classifier or is_erased(config) else None

    def found_in(self, data: ImageData, config: Any) -> Request:
        """
        What it means in a data set, for the model with this `config`.

        Images of classes that the model has several of are left out, with a warning, unless rows are counted.
        """
        if self.fraction is not None:
            return Request(data, [], data.rows_to_forget(self.fraction, self.seed or 0))
        if self.rows is not None:
            return Request(data, [], data.check_rows(self.rows))
        labels = data.resolve(self.forget or [], config)
        return Request(data.without_unclear(config), labels)


@dataclass(frozen=True)
class Request:
    """
    Classes of a data set, or rows of its training split.

    Args:
        data ([`ImageData`]): The data set.
        labels (`list[int]`): Its class indices, none where it is rows.
        rows (`list[int]`, *optional*): Rows of its training split.
    """

    data: ImageData
    labels: list[int]
    rows: list[int] | None = None

    @property
    def scenario(self) -> str:
        """As in [`UnlearningArguments`]."""
        return "classes" if self.rows is None else "images"

    @property
    def names(self) -> list[Any]:
        """The classes by name, where they have names."""
        return [self.data.label_names[label] if self.data.label_names else label for label in self.labels]

    def forget_set(self) -> Dataset:
        """The training images to forget."""
        return self.data.forget_set(self.labels) if self.rows is None else self.data.rows(self.rows)

    def retain_set(self, config: Any) -> Dataset:
        """
        The training images that are neither forgotten now nor, as the model's `config` says, were before.

        Where single images are forgotten, other rows can be the same pictures: these are left out, and that is said.
        """
        from ..data.labels import erased_labels

        gone = self.data.labels_from(config, erased_labels(config))
        kept = self.data.train if self.rows is None else self._without_copies()
        return self.data.select(kept, {*self.labels, *gone}, keep=False)

    def _without_copies(self) -> Dataset:
        from ..data.labelled_images import file_fingerprints

        prints = file_fingerprints(self.data.train, self.data.image_column)
        forgotten = {prints[row] for row in self.rows or ()}
        gone = [row for row, fingerprint in enumerate(prints) if fingerprint in forgotten]
        if copies := len(gone) - len(self.rows or ()):
            say(f"Warning: {copies} other images are copies of forgotten ones, and are not kept.", err=True)
        return self.data.rows(gone, keep=False)

    def other_retain_set(self, name: str, config: Any) -> Dataset:
        """
        The training images of another data set, in columns of the same names.

        Raises:
            LabelError: If some are of a class that is to be forgotten or was before, which would teach it again.
        """
        from ..data.image_data import load_images
        from ..data.labels import erased_labels
        from ..ledger.record import label_names

        other = load_images(name)
        wanted = {self.data.labels_in(config)[label] for label in self.labels} | erased_labels(config)
        if shared := len(other.select(other.train, other.labels_from(config, wanted))):
            names = ", ".join(map(str, label_names(config, wanted).values()))
            raise LabelError(
                f"The retain set {name!r} has {shared} images of {names}, which would teach again what is to be "
                "forgotten. Take them out."
            )
        kept = other.train.select_columns([other.image_column, other.label_column])
        return kept.rename_columns(
            {other.image_column: self.data.image_column, other.label_column: self.data.label_column}
        )

    def evaluation_sets(self) -> dict[str, Dataset]:
        """
        Images that a training is watched on: the test images of the forgotten classes and of the others, or the
        forgotten images and all test images.

        Raises:
            OptionError: If there is no test split.
        """
        data = self.data
        if data.test is None:
            raise OptionError(f"{data.name!r} has no test split for `--eval_strategy`.")
        if self.rows is not None:
            return {"forget": data.rows(self.rows), "retain": data.test}
        return {
            "forget": data.select(data.test, self.labels),
            "retain": data.select(data.test, self.labels, keep=False),
        }


def retain_set(method: Method, name: str | None, request: Request, config: Any) -> Dataset | None:
    """The images to keep, or those that stand in for forgotten ones, for methods that look at any."""
    if not method.uses_retain:
        return None
    if name is not None and method.kind == IN_FRONT:  # nothing learns from them: any images will do
        from ..data.image_data import load_pictures

        return load_pictures(name)
    return request.retain_set(config) if name is None else request.other_retain_set(name, config)


def read_rows(text: str | None) -> list[int] | None:
    """
    The row numbers that `--forget-indices` means, None where it is not given.

    Args:
        text (`str`, *optional*): Numbers with commas, or a file of them, one in a line or as a JSON list.

    Raises:
        OptionError: If a file cannot be read, or something is no whole number.
    """
    if text is None:
        return None
    where, hint = "`--forget-indices`", " (and there is no such file)"
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if os.path.isfile(text):  # of pathlib, it raises where a long list is no name that a file could have
        where, hint = f"The file {text}", ""
        try:
            content = Path(text).read_text(encoding="utf-8-sig")  # a spreadsheet writes a mark first
            is_json = content.lstrip().startswith("[")
            parts = [json.dumps(value) for value in json.loads(content)] if is_json else content.split()
        except json.JSONDecodeError as error:
            raise OptionError(f"{where} is no JSON list: {error}.") from error
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(f"{where} cannot be read as UTF-8 text: {error}.") from error
    if wrong := [part for part in parts if not re.fullmatch(r"-?[0-9]+", part)]:
        raise OptionError(
            f"{where} should be whole numbers, rows of the training split, and {wrong[0]!r} is none{hint}."
        )
    return [int(part) for part in parts]
