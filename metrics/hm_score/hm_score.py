"""HM: the harmonic mean of forgetting and keeping, as an evaluate module."""

import datasets
import evaluate

from hf_esc.evaluation.accuracy import class_indices, harmonic_mean

_DESCRIPTION = """
How well a classifier has forgotten some classes and kept the others: the harmonic mean of 100 minus its accuracy on
the forget classes, and its accuracy on the other classes, in %.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[int]`): Predicted classes.
    references (`list[int]`): True classes.
    forget_labels (`int`, `list[int]` or `torch.Tensor`): The classes that should be forgotten.

Returns:
    `dict`: `forget` and `retain`, the accuracies on images of the forget classes and of the others, and `hm`, in %.

Examples:
    >>> metric = evaluate.load("hm_score")
    >>> metric.compute(predictions=[1, 0, 2, 2], references=[0, 0, 1, 2], forget_labels=[0])
    {'forget': 50.0, 'retain': 50.0, 'hm': 50.0}
"""

_CITATION = """
@inproceedings{lee2025esc,
  title={{ESC}: Erasing Space Concept for Knowledge Deletion},
  author={Lee, Tae-Young and Park, Sundong and Jeon, Minwoo and Hwang, Hyoseok and Park, Gyeong-Moon},
  booktitle={CVPR},
  year={2025}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class HMScore(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            # Not int64: it would make a class of 1.5 without a word.
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
            reference_urls=["https://huggingface.co/papers/2504.02199"],
        )

    def _compute(self, predictions, references, forget_labels):
        for what, classes in (("Predictions", predictions), ("References", references)):
            if strange := [value for value in classes if not float(value).is_integer()]:
                raise ValueError(f"{what} are class indices, and some are {strange[:3]}.")
        forget_classes = set(class_indices(forget_labels))
        hits: dict[bool, list[bool]] = {True: [], False: []}
        for prediction, reference in zip(predictions, references, strict=True):
            hits[reference in forget_classes].append(prediction == reference)
        if not hits[True] or not hits[False]:
            raise ValueError(
                f"HM needs references of the forget labels {sorted(forget_classes)} and of others; there are "
                f"{len(hits[True])} of the first and {len(hits[False])} of the second."
            )
        forget, retain = (100 * sum(hits[kind]) / len(hits[kind]) for kind in (True, False))
        return {"forget": forget, "retain": retain, "hm": harmonic_mean(forget, retain)}
