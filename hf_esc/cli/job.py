"""Warnings of a long job, printed on stderr when it is done, and the seconds that each phase took."""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import IncompleteErasureWarning
from .terminal import say


@contextmanager
def collected_warnings() -> Iterator[list[Warning]]:
    """Print the warnings of the context on stderr, and give back the [`IncompleteErasureWarning`]s among them."""
    incomplete: list[Warning] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", category=UserWarning)
        yield incomplete
    for warning in caught:
        say(f"Warning: {warning.message}", err=True)
        if isinstance(warning.message, IncompleteErasureWarning):
            incomplete.append(warning.message)


class Clock:
    """Seconds per phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    def lap(self, phase: str) -> None:
        """The phase that ends now."""
        now = time.perf_counter()
        self.seconds[phase] = round(now - self._start, 3)
        self._start = now
