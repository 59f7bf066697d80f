"""The accuracy that a Trainer finds where it is given no other metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction


class Accuracy:
    """
    `compute_metrics` of a Trainer: the accuracy of logits `(N, C)` in %.

    It takes them at once, as a list of batches (`eval_do_concat_batches=False`), or batch by batch, which it counts
    until it is asked for the result (`batch_eval_metrics`).
    """

    def __init__(self) -> None:
        self._right = self._seen = 0

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        for logits, labels in zip(_batches(prediction.predictions), _batches(prediction.label_ids), strict=True):
            self._right += int((logits.argmax(axis=1) == labels).sum())
            self._seen += len(labels)
        if not compute_result:
            return {}
        found = {"accuracy": 100 * self._right / self._seen}
        self._right = self._seen = 0
        return found


def _batches(values: Any) -> list[np.ndarray]:
    parts = values if isinstance(values, list) else [values]
    return [part.cpu().numpy() if isinstance(part, torch.Tensor) else np.asarray(part) for part in parts]
