"""Which checkpoint a run goes on from, and whether that checkpoint is of the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError, warn

# The Trainer writes it when all else of a checkpoint is there.
LAST_FILE = "trainer_state.json"


def last_checkpoint(folder: Path) -> str:
    """
    The newest checkpoint in a folder that is whole.

    Raises:
        CheckpointError: If there is none. What is wrong with those that there are is said.

    Warns:
        UserWarning: If a newer checkpoint is not whole, because its run was killed while it was written, say.
    """
    found = {
        int(path.name.removeprefix("checkpoint-")): path
        for path in folder.glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdigit() and path.is_dir()
    }
    damaged: list[str] = []
    for step in sorted(found, reverse=True):
        if (what := _damage(found[step])) is None:
            if damaged:
                warn(f"The run goes on from {found[step]}. What is newer is not whole: {', '.join(damaged)}.")
            return str(found[step])
        damaged.append(f"{found[step].name} ({what})")
    why = f", as none is whole: {', '.join(damaged)}" if damaged else ""
    raise CheckpointError(f"There is no checkpoint in {folder} to go on from{why}. Begin a new run.")


def refuse_damaged(checkpoint: Path) -> None:
    """
    Raise a [`CheckpointError`] where a checkpoint was not written to its end, or where a file of it cannot be read.
    """
    if (what := _damage(checkpoint)) is not None:
        raise CheckpointError(
            f"{checkpoint} is not whole: {what}. Go on from another checkpoint; `resume_from_checkpoint=True` takes "
            "the newest that is whole."
        )


def _damage(checkpoint: Path) -> str | None:
    """What is missing of a checkpoint, or cannot be read; None if it is whole."""
    if not (checkpoint / LAST_FILE).is_file():
        return f"it has no {LAST_FILE}, which is written last"
    for file in sorted(checkpoint.iterdir()):
        try:
            if file.suffix == ".json":
                content = json.loads(file.read_text(encoding="utf-8"))
                shards = content.get("weight_map", {}).values() if file.name.endswith(".index.json") else ()
                if lost := sorted({name for name in shards if not (checkpoint / name).is_file()}):
                    return f"it has no {lost[0]}"
            elif file.suffix == ".safetensors":
                with safe_open(file, framework="pt"):  # compares the length of the file with its header
                    pass
        except (OSError, ValueError, SafetensorError) as error:
            return f"{file.name} cannot be read, {type(error).__name__}: {error}"
    return None


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
