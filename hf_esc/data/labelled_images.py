"""Images that are passed over many times: as tensors in memory where they fit, else read anew each time."""

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
from .batches import Batch, ImageCollator, NumberedRows, image_channels, ready_batches
from .columns import find_image_column, find_label_column
from .model_batches import NOTHING_TO_FORGET, label_mapping, processor_at_hand

# Images that are read at a time where all are read.
_CHUNK = 256


class LabelledImages(torch.utils.data.Dataset):
    """
    Preprocessed images with the model's class indices.

    Indexed with a list of rows it gives the batch `{"inputs": …, "labels": (n,), "rows": (n,)}`, `inputs` being what
    the model takes.

    Args:
        labels (`torch.LongTensor` of shape `(N,)`): The model's class indices.
        read (`Callable`): From a list of rows to the model's inputs.
        fingerprints (`Callable`): To one fingerprint for each image, of the file where it comes from one.
        from_files (`bool`): Whether fingerprints are of files, and not of tensors.
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
        """All rows in order."""
        for start in range(0, len(self), size):
            yield self.__getitems__(list(range(start, min(start + size, len(self)))))

    def part(self, rows: Tensor) -> LabelledImages:
        """These rows alone."""
        chosen = rows.tolist()
        return LabelledImages(
            self.labels[rows],
            lambda wanted: self._read([chosen[row] for row in wanted]),
            lambda: [self._fingerprints()[row] for row in chosen],
            from_files=self.from_files,
        )

    @property
    def sha256(self) -> str:
        """Of all images in their order."""
        return hashlib.sha256(b"".join(self._fingerprints())).hexdigest()

    @property
    def labels_sha256(self) -> str:
        """Of all labels in their order."""
        return hashlib.sha256(self.labels.numpy().tobytes()).hexdigest()

    def refuse_overlap(self, retain: LabelledImages) -> None:
        """
        Raise a [`ForgetSetError`] where a retain image is one of these, byte for byte, or where one side is of files
        and the other of tensors, which cannot be compared.
        """
        if self.from_files != retain.from_files:
            raise ForgetSetError(
                "One of the forget and the retain set is a data set and the other batches of tensors, so it cannot be "
                "told whether they share images. Give both in the same form."
            )
        own = set(self._fingerprints())
        if shared := [row for row, fingerprint in enumerate(retain._fingerprints()) if fingerprint in own]:
            raise ForgetSetError(
                f"The forget and the retain set share {len(shared)} images, such as row {shared[0]} of the retain "
                "set, which would be trained on as images to keep. Take them out of the retain set."
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
    The images of a data set, or of batches of tensors, for a model.

    Args:
        model (`PreTrainedModel`): Whose classes and inputs they are for.
        images: A `datasets.Dataset` with columns of images and labels, or an iterable of ready batches, dicts of
            tensors as the model takes them with `labels` (the model's class indices), which are kept in memory.
        processor (*optional*): Image processor; that of `model` by default.
        image_column, label_column (`str`, *optional*): Columns of a data set.
        memory (`int`, defaults to 1024): The most MiB that a data set's preprocessed images may take in memory. Beyond
            it they are read and preprocessed in every pass.
        what (`str`): What they are, for errors.

    Returns:
        [`LabelledImages`], and the image processor where there was need of one.

    Raises:
        ForgetSetError: If there is no image, one has no label, or it is a stream.
        LabelError: If the labels are not the model's.
        DataError: If a column cannot be found or an image cannot be read.
        ModelError: If there is no image processor for a data set.
    """
    if isinstance(images, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise ForgetSetError(f"The {what} is one split, and this has {list(images)}. Choose one, such as `['train']`.")
    if isinstance(images, datasets.IterableDataset):
        raise ForgetSetError(f"The {what} is passed over several times, and a stream ends. Give a `datasets.Dataset`.")
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
    mapping = torch.tensor(label_mapping(images.features[label_column], model.config))
    labels = torch.as_tensor(images.with_format(None)[label_column][:])
    if labels.min() < 0 or labels.max() >= len(mapping):
        raise LabelError(
            f"The {what} has labels from {labels.min()} to {labels.max()}, beyond {len(mapping)} classes."
        )
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
        return LabelledImages(mapping[labels], read, fingerprints, from_files=True), processor
    parts = [read(list(range(start, min(start + _CHUNK, len(files))))) for start in range(0, len(files), _CHUNK)]
    kept = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return LabelledImages(mapping[labels], _of_tensors(kept), fingerprints, from_files=True), processor


def file_fingerprints(images: datasets.Dataset, image_column: str) -> list[bytes]:
    """One fingerprint for each image, of its file's bytes, or of its address where that is all there is."""
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
        raise ForgetSetError(f"The batches of the {what} are not of one kind: {str(error).splitlines()[0]}") from error
    if len(lengths := {len(value) for value in kept.values()}) > 1:
        raise ForgetSetError(f"The {what} has entries of different lengths: {sorted(lengths)}.")
    labels = kept.pop("labels").long()
    if labels.min() < 0 or (num_labels is not None and labels.max() >= num_labels):
        raise LabelError(
            f"The {what} has labels from {labels.min()} to {labels.max()}, and the model {num_labels} classes."
        )

    def fingerprints() -> list[bytes]:
        rows = zip(*(value.contiguous() for value in kept.values()), strict=True)
        return [hashlib.sha256(b"".join(map(_bytes, row))).digest() for row in rows]

    return LabelledImages(labels, _of_tensors(kept), fingerprints, from_files=False)


def _of_tensors(kept: dict[str, Tensor]) -> Callable[[list[int]], Batch]:
    return lambda rows: {name: value[rows] for name, value in kept.items()}


def _file_of(cell: dict[str, Any]) -> bytes:
    """What an image is stored as: the same picture can lie at two paths."""
    if cell["bytes"] is not None:
        return cell["bytes"]
    try:
        return Path(cell["path"]).read_bytes()
    except OSError:  # an address; what cannot be read at all is said where it is read
        return str(cell["path"]).encode()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.flatten().view(torch.uint8).numpy().tobytes()
