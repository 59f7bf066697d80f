"""What commands print: tables of accuracies for people, one JSON object for scripts."""

import json
from collections.abc import Mapping
from typing import Any

import typer

_ROWS = {
    "forget_train": "D_f    forget, train",
    "retain_train": "D_r    retain, train",
    "forget_test": "D_ft   forget, test",
    "retain_test": "D_rt   retain, test",
    "hm_train": "HM     train",
    "hm_test": "HM_t   test",
}


def print_json(values: Mapping[str, Any]) -> None:
    """One object, nothing else on stdout."""
    typer.echo(json.dumps(values, indent=2))


def accuracy_table(columns: Mapping[str, Mapping[str, float | None]]) -> str:
    """Accuracies in %, one row each, one column for each model."""
    lines = [f"{'accuracy in %':<22}" + "".join(f"{name:>12}" for name in columns)]
    for key, title in _ROWS.items():
        cells = (values[key] for values in columns.values())
        lines.append(f"{title:<22}" + "".join(f"{'-' if cell is None else f'{cell:.2f}':>12}" for cell in cells))
    return "\n".join(lines)
