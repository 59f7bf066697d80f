"""Images for several passes: kept in memory as tensors if they fit, else read anew in each pass."""

# Shapes: N images, B of them in a batch.

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Image
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import ForgetSetError, LabelError
from ..loading import load_processor
from .batches import Batch, ImageCollator, NumberedRows, different_sizes, image_channels, ready_batches
from .columns import class_indices, find_image_column, find_label_column
from .model_batches import NOTHING_TO_FORGET, check_model, label_mapping, mapped, processor_at_hand

# Number of images that are read at a time when all are read.
_CHUNK = 256


class LabelledImages(torch.utils.data.Dataset):
    """
    Preprocessed images with the model's class indices.

    A list of n rows as index gives the batch `{"inputs": …, "labels": (n,), "rows": (n,)}`, where `inputs` holds the
    model's inputs.

    Args:
        labels (`torch.LongTensor` of shape `(N,)`): The model's class indices.
        read (`Callable`): Takes a list of rows and returns the model's inputs.
        fingerprints (`Callable`): Returns one fingerprint for each image.
        from_files (`bool`): Whether the fingerprints are of files. Otherwise they are of tensors.
    """

    def __init__(
        self,
        labels: Tensor,
        read: Callable[[list[int]], Batch],
        fingerprints: Callable[[], list[bytes]],
        *,
        from_files: bool,
    ):
        self.labels = labels
        self.from_files = from_files
        self._read = read
        self._fingerprints = fingerprints

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, rows: list[int]) -> dict[str, Any]:
        return {"inputs": self._read(rows), "labels": self.labels[rows], "rows": torch.tensor(rows, dtype=torch.long)}

    def batches(self, size: int = _CHUNK) -> Iterator[dict[str, Any]]:
        """Batches of all rows, in order."""
        for start in range(0, len(self), size):
            yield self.__getitems__(list(range(start, min(start + size, len(self)))))

    def part(self, rows: Tensor) -> LabelledImages:
        """A data set of only these rows."""
        chosen = rows.tolist()
        return LabelledImages(
            self.labels[rows],
            lambda wanted: self._read([chosen[row] for row in wanted]),
            lambda: [self._fingerprints()[row] for row in chosen],
            from_files=self.from_files,
        )

    @property
    def sha256(self) -> str:
        """SHA-256 of all images in their order."""
        return hashlib.sha256(b"".join(self._fingerprints())).hexdigest()

    @property
    def labels_sha256(self) -> str:
        """SHA-256 of all labels in their order."""
        return hashlib.sha256(self.labels.numpy().tobytes()).hexdigest()

    def refuse_overlap(self, retain: LabelledImages) -> None:
        """
        Raise a [`ForgetSetError`] if a retain image equals one of these byte for byte. Raise one also if one set is of
        files and the other of tensors, because these cannot be compared.
        """
        if self.from_files != retain.from_files:
            raise ForgetSetError(
                "Of the forget set and the retain set, one is a data set and the other batches of tensors, so nothing "
                "can tell whether they share images. Give both in the same form."
            )
        own = set(self._fingerprints())
        if shared := [row for row, fingerprint in enumerate(retain._fingerprints()) if fingerprint in own]:
            raise ForgetSetError(
                f"The forget and the retain set share {len(shared)} images, such as row {shared[0]} of the retain "
                "set. Training would keep them. Take them out of the retain set."
            )


def labelled_images(
    model: PreTrainedModel,
    images: Any,
    processor: Any = None,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    memory: int = 1024,
    what: str = "forget set",
) -> tuple[LabelledImages, Any]:
    """
    Read the images of a data set, or of batches of tensors, for a model.

    Args:
        model (`PreTrainedModel`): The model whose inputs and class indices the result has.
        images: A `datasets.Dataset` with columns of images and labels, or an iterable of ready batches. A ready batch
            is a dict of the model's input tensors and `labels` (the model's class indices). Ready batches are kept in
            memory.
        processor (*optional*): Image processor. By default, the processor of `model`.
        image_column, label_column (`str`, *optional*): Columns of a data set.
        memory (`int`, defaults to 1024): The most MiB that a data set's preprocessed images may take in memory. If
            they need more, they are read and preprocessed in every pass.
        what (`str`): Names the set in errors.

    Returns:
        [`LabelledImages`], and the image processor if one was needed.

    Raises:
        ForgetSetError: If there is no image, an image has no label, or `images` is a stream.
        LabelError: If the labels are not the model's.
        DataError: If a column cannot be found or an image cannot be read.
        ModelError: If a data set comes without an image processor.
    """
    check_model(model)
    if isinstance(images, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise ForgetSetError(
            f"The {what} should be one split, and this has {list(images)}. Choose one, such as `['train']`."
        )
    if isinstance(images, datasets.IterableDataset):
        raise ForgetSetError(f"The {what} is a stream, and it is needed several times. Give a `datasets.Dataset`.")
    if isinstance(images, datasets.Dataset):
        found = _of_data_set(model, images, processor, image_column, label_column, memory, what)
    else:
        processor = processor if processor is not None else processor_at_hand(model)
        found = _of_batches(images, model.config.num_labels, what), processor
    if not len(found[0]):
        raise ForgetSetError(NOTHING_TO_FORGET.replace("forget set", what))
    return found


def _of_data_set(model, images: datasets.Dataset, processor, image_column, label_column, memory: int, what: str):
    if not len(images):
        raise ForgetSetError(NOTHING_TO_FORGET.replace("forget set", what))
    image_column = find_image_column(images.features, image_column)
    label_column = find_label_column(images.features, label_column)
    labels = torch.from_numpy(class_indices(images.with_format(None)[label_column][:], label_column))
    labels = mapped(labels, label_mapping(images.features[label_column], model.config), what)
    processor = processor if processor is not None else load_processor(model)
    files = images.with_format(None).select_columns([image_column]).cast_column(image_column, Image(decode=False))
    collate = ImageCollator(processor, image_column, None, "L" if image_channels(model.config) == 1 else "RGB")
    source = NumberedRows(files)

    def read(rows: list[int]) -> Batch:
        return collate(source.__getitems__(rows))

    def fingerprints() -> list[bytes]:
        return file_fingerprints(images, image_column)

    one = sum(value.numel() * value.element_size() for value in read([0]).values())
    if one * len(files) > memory * 2**20:
        return LabelledImages(labels, read, fingerprints, from_files=True), processor
    parts = [read(list(range(start, min(start + _CHUNK, len(files))))) for start in range(0, len(files), _CHUNK)]
    for number, part in enumerate(parts):
        if (sizes := [_sizes(part), _sizes(parts[0])])[0] != sizes[1]:
            raise different_sizes([number * _CHUNK, 0], sizes)
    kept = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return LabelledImages(labels, _of_tensors(kept), fingerprints, from_files=True), processor


def _sizes(batch: Batch) -> str:
    return str([tuple(value.shape[1:]) for value in batch.values()])


def file_fingerprints(images: datasets.Dataset, image_column: str) -> list[bytes]:
    """One fingerprint for each image: of its file's bytes, or of its address if the file cannot be read."""
    files = images.with_format(None).select_columns([image_column]).cast_column(image_column, Image(decode=False))
    return [
        hashlib.sha256(_file_of(cell)).digest()
        for start in range(0, len(files), _CHUNK)
        for cell in files[start : start + _CHUNK][image_column]
    ]


def _of_batches(batches: Any, num_labels: int | None, what: str) -> LabelledImages:
    parts = []
    try:
        for number, batch in enumerate(ready_batches(batches)):
            if "labels" not in batch:
                raise ForgetSetError(f"Batch {number} of the {what} has no `labels`, and each image needs one.")
            parts.append(batch)
    except TypeError as error:
        raise ForgetSetError(
            f"A {what} is a data set or an iterable of batches, not {type(batches).__name__}."
        ) from error
    if not parts:
        raise ForgetSetError(NOTHING_TO_FORGET.replace("forget set", what))
    try:
        kept = {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
    except (KeyError, RuntimeError) as error:
        raise ForgetSetError(f"The batches of the {what} do not fit together: {str(error).splitlines()[0]}") from error
    if len(lengths := {len(value) for value in kept.values()}) > 1:
        raise ForgetSetError(f"The {what} has entries of different lengths: {sorted(lengths)}.")
    labels = kept.pop("labels").long()
    if labels.min() < 0 or (num_labels is not None and labels.max() >= num_labels):
        raise LabelError(
            f"The {what} has labels from {labels.min()} to {labels.max()}, and the model has {num_labels} classes."
        )

    def fingerprints() -> list[bytes]:
        rows = zip(*(value.contiguous() for value in kept.values()), strict=True)
        return [hashlib.sha256(b"".join(map(_bytes, row))).digest() for row in rows]

    return LabelledImages(labels, _of_tensors(kept), fingerprints, from_files=False)


def _of_tensors(kept: dict[str, Tensor]) -> Callable[[list[int]], Batch]:
    return lambda rows: {name: value[rows] for name, value in kept.items()}


def _file_of(cell: dict[str, Any]) -> bytes:
    """The bytes of an image's file, because the same image can lie at two paths; its address if it cannot be read."""
    if cell["bytes"] is not None:
        return cell["bytes"]
    try:
        return Path(cell["path"]).read_bytes()
    except OSError:  # perhaps an address on the web; reading the image raises an error if it cannot be read at all
        return str(cell["path"]).encode()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.flatten().view(torch.uint8).numpy().tobytes()


def with_main_input(batch: dict[str, Any], *, name: str) -> dict[str, Any]:
    """A batch with the main input of the model beside all of its inputs, too, where a Trainer looks for it."""
    return {name: batch["inputs"][name]} | batch
