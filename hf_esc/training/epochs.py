"""What the loaders of both Trainers share: a seeded order for each epoch, and this process's share of each batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler


class EpochSampler(Sampler[list[Any]]):
    """
    The batches of one process, in an order that the seed and the epoch decide.

    Args:
        index, processes (`int`): Which process of how many this is.
        seed (`int`): Each epoch has a generator of its own that follows from this seed.
    """

    def __init__(self, index: int, processes: int, seed: int):
        self.index = index
        self.processes = processes
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Go on to another epoch."""
        self.epoch = epoch

    def generator(self, epoch: int) -> torch.Generator:
        """The generator of an epoch, the same for every process."""
        # With the sum of both as a seed, the second epoch of one seed would be the first epoch of the next seed.
        seed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
        return torch.Generator().manual_seed(seed)

    def share(self, rows: Sequence[Any], *, even: bool = False) -> list[Any]:
        """
        This process's share of a batch: process i of n takes rows i, i + n, i + 2n, …

        Args:
            rows (`Sequence`): The batch of all processes together.
            even (`bool`, defaults to `False`): Give every process equally many rows. The batch is then filled up with
                rows from its beginning; otherwise no row is repeated, and the last shares can be smaller or empty.
        """
        rows = list(rows)
        if even:
            rows = (rows * self.processes)[: -(-len(rows) // self.processes) * self.processes]
        return rows[self.index :: self.processes]


class EpochLoader(DataLoader):
    """
    Loads the batches of an [`EpochSampler`] from a data set whose `__getitems__` returns a whole batch.

    Args:
        dataset (`torch.utils.data.Dataset`): What to draw from.
        sampler ([`EpochSampler`]): What to draw.
        num_workers (`int`, defaults to 0): How many processes read the data.
    """

    def __init__(self, dataset: Dataset, sampler: EpochSampler, num_workers: int = 0):
        self.epochs = sampler
        super().__init__(
            dataset,
            batch_sampler=sampler,
            collate_fn=as_it_is,
            num_workers=num_workers,
            # A loader draws a seed for its workers. Without a generator of its own it would draw from the caller's.
            generator=torch.Generator(),
        )

    def set_epoch(self, epoch: int) -> None:
        """Go on to another epoch; the Trainer calls this before each one."""
        self.epochs.set_epoch(epoch)


def as_it_is(batch: Any) -> Any:
    """The collator of data sets that return whole batches."""
    return batch
