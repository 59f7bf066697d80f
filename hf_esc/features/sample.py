"""A bounded uniform sample of a stream of features."""

# Shapes: n sampled images, d_g feature dimensions of group g.

from __future__ import annotations

import torch
from torch import Tensor

from .stream import FeatureBatch


class FeatureSample:
    """
    A uniform sample of a stream, of bounded size, by reservoir sampling: each image has the same chance.

    Args:
        size (`int`): The largest number of images to keep.
        seed (`int`): Seed of the draw.
    """

    def __init__(self, size: int, seed: int = 0):
        self.size = size
        self.generator = torch.Generator().manual_seed(seed)
        self.n = 0
        self._features: list[Tensor] = []
        self._predictions = torch.empty(0, dtype=torch.long)
        self._labels: Tensor | None = None

    def update(self, batch: FeatureBatch) -> None:
        """Draw from a batch of the stream."""
        count = len(batch.logits)
        # Row i of the stream goes to slot i while there is room. After that, j is uniform in [0, i], and the row goes
        # to slot j if the sample has a slot j.
        rows = torch.arange(self.n, self.n + count)
        drawn = (torch.rand(count, generator=self.generator, dtype=torch.float64) * (rows + 1)).long()
        slots = torch.where(rows < self.size, rows, drawn)
        kept = (slots < self.size).nonzero().flatten()
        self.n += count
        if not len(kept):
            return
        # If several rows go to one slot, the last one stays, as if they had come one by one.
        last = {int(slots[row]): int(row) for row in kept}
        slot, row = torch.tensor(list(last)), torch.tensor(list(last.values()))
        row_there = row.to(batch.logits.device)
        self._features = self._features or [z.new_empty(0, z.shape[1]).cpu() for z in batch.features]
        needed = min(self.size, self.n)
        for group, z in enumerate(batch.features):
            self._features[group] = _put(self._features[group], needed, slot, z[row_there].cpu())
        self._predictions = _put(self._predictions, needed, slot, batch.logits.argmax(dim=1)[row_there].cpu())
        if batch.labels is not None:
            labels = torch.empty(0, dtype=torch.long) if self._labels is None else self._labels
            self._labels = _put(labels, needed, slot, batch.labels.cpu()[row])

    @property
    def features(self) -> list[Tensor]:
        """One tensor `(n, d_g)` for each group."""
        return self._features

    @property
    def predictions(self) -> Tensor:
        """The class that the head predicts for each image, `(n,)`."""
        return self._predictions

    @property
    def labels(self) -> Tensor | None:
        """The label of each image, `(n,)`. None if the stream had no labels."""
        return self._labels


def _put(store: Tensor, size: int, slots: Tensor, values: Tensor) -> Tensor:
    if len(store) < size:
        store = torch.cat([store, store.new_empty(size - len(store), *store.shape[1:])])
    store[slots] = values
    return store
