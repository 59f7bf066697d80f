"""Which checkpoint a run goes on from, and whether that checkpoint is of the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import CheckpointError


def last_checkpoint(folder: Path) -> str:
    """
    The last checkpoint in a folder that was written to its end.

    Raises:
        CheckpointError: If there is none.
    """
    found = {
        int(path.name.removeprefix("checkpoint-")): path
        for path in folder.glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdigit() and (path / "trainer_state.json").is_file()
    }
    if not found:
        raise CheckpointError(f"There is no checkpoint in {folder} to go on from.")
    return str(found[max(found)])


def refuse_another_run(checkpoint: Path, stored: dict[str, Any], own: dict[str, Any]) -> None:
    """
    Compare what a checkpoint says of its run with the run at hand, as [`ForgettingTrainer`] describes both.

    Raises:
        CheckpointError: If they differ. Every difference is named.
    """
    own = json.loads(json.dumps(own))  # a tuple that was stored comes back as a list
    if other := [name for name in {**own, **stored} if own.get(name) != stored.get(name)]:
        raise CheckpointError(
            f"{checkpoint} is of another run: "
            + ", ".join(f"{name} was {stored.get(name)!r} and is {own.get(name)!r}" for name in other)
            + ". A run goes on with the images and settings that it began with; for others begin a new run."
        )
