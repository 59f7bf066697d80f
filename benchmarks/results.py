"""Files of results: read and written whole, so that a run that is killed leaves the last whole one."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def read(file: Path) -> dict[str, Any]:
    """What is there, or nothing yet."""
    return json.loads(file.read_text()) if file.exists() else {}


def write(file: Path, values: dict[str, Any]) -> None:
    """All of it or none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(f".{os.getpid()}.tmp")
    scratch.write_text(json.dumps(values, indent=1) + "\n")
    scratch.replace(file)


def stopped_early(settings: Mapping[str, Any]) -> bool:
    """
    Whether a converged probe with these settings was stopped by a tolerance on the mean loss, as it was before it said
    how small its `gradient` was or that it is `constant`: it may read too little.
    """
    return "gradient" not in settings and "constant" not in settings


def any_stopped_early(probes: Iterable[str], settings: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether any of these probes was, by the settings of each. Those that are not minimised have no such end."""
    return any(stopped_early(settings.get(probe, {})) for probe in probes if probe not in ("paper", "mlp", "knn"))


def parts_stopped_early(model: Mapping[str, Any]) -> list[str]:
    """Which of `retention`, `curve` and `attacks` of a model of a report have a converged probe that was."""
    settings = {probe: found["settings"] for probe, found in model["retention"].items()}
    hidden = (model["attacks"] or {}).get("hidden_layers")
    early = {
        "retention": any_stopped_early(settings, settings),
        # These do not say how small the gradient was, but have had something else to say ever since.
        "curve": any("any_test" not in point for point in model["curve"] or ()),
        "attacks": hidden is not None and "converged" not in hidden["settings"],
    }
    return [part for part, is_early in early.items() if is_early]


def listed(words: Sequence[str]) -> str:
    """With commas, and with "and" before the last."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def early_mark(whose: Sequence[str]) -> str:
    """What stands under a table with numbers of such probes: whose they are. Nothing where nobody has any."""
    if not whose:
        return ""
    return (
        f"\n\nNot measured anew yet: the converged probes of {listed(whose)} were stopped early, by a tolerance on "
        "the mean loss, and may read too little (or too much). The next run measures them."
    )
