"""The state of a training run in one file without pickle: tensors as safetensors, all else as JSON in its header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..errors import CheckpointError


def save_state(file: Path, state: Any) -> None:
    """
    Write nested dicts, lists and tuples of tensors, arrays, numbers, strings and None to a safetensors file.

    Raises:
        TypeError: If the state holds anything else.
    """
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_encode(state, tensors))
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata={"format": "pt", "state": text})


def load_state(file: Path) -> Any:
    """
    Read what [`save_state`] wrote.

    Raises:
        CheckpointError: If the file is none that `save_state` wrote.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
            return _decode(json.loads(opened.metadata()["state"]), tensors)
    except Exception as error:  # safetensors, JSON and the file system raise different errors
        raise CheckpointError(f"{file} is no state of a training run: {type(error).__name__}: {error}") from error


def _encode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return {"array": _encode(torch.as_tensor(np.asarray(value)), tensors)["tensor"]}
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[_encode(key, tensors), _encode(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_encode(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_encode(item, tensors) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"A training state of {type(value).__name__} cannot be saved without pickle.")


def _decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return tensors[content].numpy()
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in content)
    if kind != "dict":
        raise ValueError(f"there is no kind {kind!r} of value")
    return {_decode(key, tensors): _decode(item, tensors) for key, item in content}
