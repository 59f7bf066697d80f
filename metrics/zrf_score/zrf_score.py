"""ZRF: zero retrain forgetting, as an evaluate module."""

from dataclasses import asdict

import datasets
import evaluate
import torch

from hf_esc.evaluation.zrf import zero_retrain_forgetting

_DESCRIPTION = """
How close a model's answers on the forget set are to those of a randomly initialised network: 1 minus the mean
Jensen-Shannon divergence of their distributions over the classes.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[list[float]]`): The model's logits on the forget images, before the softmax.
    references (`list[list[float]]`): The random network's logits on the same images.
    base (`int` or `str`, defaults to 2): Base of the logarithm, 2 or "e".

Returns:
    `dict`: `zrf`, up to 1, from 0 with base 2 and from 0.307 with base e; the `base`; and the number of `images`.

Examples:
    >>> metric = evaluate.load("zrf_score")
    >>> metric.compute(predictions=[[1000.0, 0.0], [0.0, 0.0]], references=[[0.0, 1000.0], [0.0, 0.0]])
    {'zrf': 0.5, 'base': 2, 'images': 2}
"""

_CITATION = """
@inproceedings{chundawat2023can,
  title={Can Bad Teaching Induce Forgetting? Unlearning in Deep Networks Using an Incompetent Teacher},
  author={Chundawat, Vikram S and Tarun, Ayush K and Mandal, Murari and Kankanhalli, Mohan},
  booktitle={AAAI},
  year={2023}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class ZRFScore(evaluate.Metric):
    def _info(self):
        logits = datasets.List(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": logits, "references": logits}),
            reference_urls=["https://huggingface.co/papers/2205.08096"],
        )

    def _compute(self, predictions, references, base=2):
        lengths = {len(row) for row in [*predictions, *references]}
        if len(lengths) != 1:
            raise ValueError(f"All rows of logits should be of the same classes, and there are rows of {lengths}.")
        logits, random_logits = (torch.tensor(rows, dtype=torch.float64) for rows in (predictions, references))
        return asdict(zero_retrain_forgetting(logits, random_logits, base=base))
