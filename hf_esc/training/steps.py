"""Which forget and retain images each step of an unlearning method takes, and each process's share of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from ..data.labelled_images import LabelledImages
from .epochs import EpochLoader, EpochSampler

# The rows of the forget set and of the retain set that one step takes. Either can be empty.
Step = tuple[Tensor, Tensor]
NOTHING = torch.empty(0, dtype=torch.long)


def shuffled(rows: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """All rows once, in random order. The last batch can be smaller."""
    return list(torch.randperm(rows, generator=generator).split(batch_size))


def alone(batches: list[Tensor], *, forget: bool) -> list[Step]:
    """Steps of one side."""
    return [(batch, NOTHING) if forget else (NOTHING, batch) for batch in batches]


def paired(forget: list[Tensor], retain: list[Tensor]) -> list[Step]:
    """Steps of both sides: as many as the longer side has batches. The shorter side starts over when it ends."""
    if len(forget) < len(retain):
        return list(zip(cycle(forget), retain, strict=False))
    return list(zip(forget, cycle(retain), strict=False))


def mixed(forget: int, retain: int, batch_size: int, generator: torch.Generator) -> list[Step]:
    """All rows of both sides once, shuffled together."""
    return [
        (batch[batch < forget], batch[batch >= forget] - forget)
        for batch in shuffled(forget + retain, batch_size, generator)
    ]


class Schedule(EpochSampler):
    """
    The steps of each epoch, as this process's rows: `(True, row)` of the forget set, `(False, row)` of the retain set.

    Every process has an equal share of each step, which is empty only where the step is: where the rows do not go
    round, rows from the step's beginning are taken a second time. Each side is shared out by itself, unless both are
    shuffled together.

    Args:
        steps (`Callable`): From an epoch and a generator to the steps of that epoch, of all processes together.
        index, processes, seed (`int`): As in [`EpochSampler`].
        together (`bool`, defaults to `False`): Share out the rows of both sides as one.
    """

    def __init__(
        self,
        steps: Callable[[int, torch.Generator], list[Step]],
        index: int,
        processes: int,
        *,
        seed: int,
        together: bool = False,
    ):
        super().__init__(index, processes, seed)
        self.steps = steps
        self.together = together

    def of(self, epoch: int) -> list[Step]:
        """The steps of an epoch."""
        return self.steps(epoch, self.generator(epoch))

    def __len__(self) -> int:
        return len(self.of(0))

    def position(self, step: int) -> tuple[int, int]:
        """Epoch and step within it of step `step`, counted from 0. Epochs can differ in length."""
        epoch = 0
        while step >= (length := len(self.of(epoch))):
            step -= length
            epoch += 1
        return epoch, step

    def steps_in(self, epochs: float) -> int:
        """How many steps so many epochs take."""
        whole = math.floor(epochs)
        rest = math.ceil((epochs - whole) * len(self.of(whole))) if epochs > whole else 0
        return sum(len(self.of(epoch)) for epoch in range(whole)) + rest

    def sides(self, steps: int, accumulated: int = 1) -> list[str]:
        """Which sides, `"forget"` and `"retain"`, the first so many steps take, each of `accumulated` batches."""
        found: set[str] = set()
        epoch = 0
        while steps > 0 and len(found) < 2:
            batches = self.of(epoch)
            for both in batches[: steps * accumulated]:
                found |= {name for name, rows in zip(("forget", "retain"), both, strict=True) if len(rows)}
            steps -= math.ceil(len(batches) / accumulated)
            epoch += 1
        return sorted(found)

    def __iter__(self) -> Iterator[list[tuple[bool, int]]]:
        for forget, retain in self.of(self.epoch):
            sides = [[(True, row) for row in forget.tolist()], [(False, row) for row in retain.tolist()]]
            parts = [sides[0] + sides[1]] if self.together else sides
            yield [row for part in parts for row in self.share(part, even=True)]


class _Both(torch.utils.data.Dataset):
    def __init__(self, forget: LabelledImages | None, retain: LabelledImages | None):
        self.sides = {True: forget, False: retain}

    def __getitems__(self, wanted: list[tuple[bool, int]]) -> dict[str, Any]:
        batch = {}
        for side, name in ((True, "forget"), (False, "retain")):
            images = self.sides[side]
            rows = [row for of, row in wanted if of is side]
            if images is not None and rows:
                batch[name] = images.__getitems__(rows)
        return batch


class PairedLoader(EpochLoader):
    """
    Batches `{"forget": …, "retain": …}`, of which a step can lack one, each as [`LabelledImages`] gives it.

    Args:
        forget, retain ([`LabelledImages`], *optional*): What to draw from.
        schedule ([`Schedule`]): What to draw.
        num_workers (`int`, defaults to 0): How many processes read the images.
    """

    def __init__(
        self, forget: LabelledImages | None, retain: LabelledImages | None, schedule: Schedule, num_workers: int = 0
    ):
        self.schedule = schedule
        super().__init__(_Both(forget, retain), schedule, num_workers)
