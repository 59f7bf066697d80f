"""KR (knowledge retention): how much of the forgotten classes a probe reads from features, as an evaluate module."""

import datasets
import evaluate
import numpy as np
import pyarrow as pa
import torch

from hf_esc.errors import ProbeError
from hf_esc.evaluation.accuracy import class_indices
from hf_esc.evaluation.knowledge_retention import knowledge_retention
from hf_esc.evaluation.probes import check_features

_DESCRIPTION = """
Knowledge retention: the accuracies, in %, of a probe on the forgotten and on the other classes. The probe is a new
classifier, trained on the features of a model for all classes, the forgotten ones included. A model that has only
learned to give other answers keeps its features, and the probe reads the forgotten classes from them.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`np.ndarray`, `torch.Tensor` or `list` of shape `(M, d)`): Features of the test set.
    references (`np.ndarray`, `torch.Tensor` or `list` of shape `(M,)`): Classes of the test set, from 0.
    train_features (`np.ndarray`, `torch.Tensor` or `list` of shape `(N, d)`): Features of the full training set, on
        which the probe is trained. Features are read as float32.
    train_labels (`np.ndarray`, `torch.Tensor` or `list` of shape `(N,)`): Classes of the training set.
    forget_labels (`int`, `list[int]` or `torch.Tensor`): The classes that were to be forgotten.
    probe (`str`, defaults to `"paper"`): `"paper"` is the ESC paper's, a linear head that is not trained to the end:
        it tells how readily a class is read. `"converged"` (logistic regression), `"mlp"` and `"knn"` tell whether a
        class can be read. `"one_vs_rest"` is the logistic regression of forget images against others.
    seed (`int`, defaults to 0): Seed of the probe's weights and batches.
    device (`str`, *optional*): Where the probe is trained; by default an accelerator if there is one. `"knn"` is
        computed on the CPU.

Returns:
    `dict`: `forget_train`, `retain_train`, `forget_test` and `retain_test`, the probe's accuracies on images of the
    forget classes and of the others (for `"one_vs_rest"`, the shares that it recognises as such); `hm_train` and
    `hm_test`, the harmonic means of 100 minus the forget accuracy and the retain accuracy, in %; `any_train` and
    `any_test`, where there are two forget classes or more, the shares of their images that are taken for any of these;
    `probe`, its name; and `settings`, what it was trained with and whether it converged. Where `settings` has
    `constant`, the probe learnt nothing but how frequent the classes are, and there are no accuracies: they are None.

Examples:
    Twenty training images of each class. The probe takes one of two test images of class 0 for class 1.

    >>> import evaluate, hf_esc
    >>> metric = evaluate.load("kr_score")
    >>> result = metric.compute(
    ...     predictions=[[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]],
    ...     references=[0, 0, 1, 1],
    ...     train_features=20 * [[0.0, 0.0], [1.0, 0.0]],
    ...     train_labels=20 * [0, 1],
    ...     forget_labels=[0],
    ...     probe="knn",
    ... )
    >>> {name: result[name] for name in ("forget_train", "retain_train", "hm_train")}
    {'forget_train': 100.0, 'retain_train': 100.0, 'hm_train': 0.0}
    >>> {name: round(result[name], 2) for name in ("forget_test", "retain_test", "hm_test")}
    {'forget_test': 50.0, 'retain_test': 100.0, 'hm_test': 66.67}
    >>> result["probe"], result["settings"]
    ('knn', {'neighbours': 10})
"""

_CITATION = """
@inproceedings{lee2025esc,
  title={{ESC}: Erasing Space Concept for Knowledge Deletion},
  author={Lee, Tae-Young and Park, Sundong and Jeon, Minwoo and Hwang, Hyoseok and Park, Gyeong-Moon},
  booktitle={CVPR},
  year={2025}
}
"""

# Features in one write. An Arrow list array has 32-bit offsets, so this many features can have 200,000 dimensions.
_ROWS = 10_000


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class KRScore(evaluate.Metric):
    def _info(self):
        info = evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
            reference_urls=["https://huggingface.co/papers/2504.02199"],
        )
        info.format = "numpy"  # else features come back as Python lists; MetricInfo(format=...) refuses list columns
        return info

    def add_batch(self, *, predictions=None, references=None):
        """Add a batch of test features and their classes.

        Args:
            predictions (`np.ndarray`, `torch.Tensor` or `list` of shape `(M, d)`): Features.
            references (`np.ndarray`, `torch.Tensor` or `list` of shape `(M,)`): Classes.
        """
        # The method of `evaluate` makes a Python object of each number, which takes many times longer.
        features, labels = _tensors(predictions, references, "test")
        if self.writer is None:
            self.selected_feature_format = self.features
            self._init_writer()
        for part, classes in zip(features.split(_ROWS), labels.split(_ROWS), strict=True):
            offsets = np.arange(len(part) + 1, dtype=np.int32) * np.int32(part.shape[1])
            rows = pa.ListArray.from_arrays(offsets, part.flatten().numpy())
            self.writer.write_batch({"predictions": rows, "references": pa.array(classes.numpy())})

    def _compute(
        self, predictions, references, train_features, train_labels, forget_labels, probe="paper", seed=0, device=None
    ):
        train = _tensors(train_features, train_labels, "training")
        test = _tensors(predictions, references, "test")
        try:
            forget = class_indices(forget_labels)
        except ValueError as error:
            raise ProbeError(str(error)) from error
        return knowledge_retention(*train, *test, forget, probe=probe, seed=seed, device=device).to_dict()


def _tensors(features, labels, what: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and labels on the CPU, as float32 `(N, d)` and int64 `(N,)`."""
    z, y = _tensor(features, f"{what} features", np.float32).float(), _tensor(labels, f"{what} labels")
    check_features(z, y, what)
    return z, y.long()


def _tensor(values, what: str, dtype=None) -> torch.Tensor:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu()
    try:
        return torch.tensor(np.asarray(values, dtype))
    except (TypeError, ValueError) as error:
        raise ProbeError(f"The {what} should be an array of numbers and cannot be read as one: {error}") from error
