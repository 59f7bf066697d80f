"""MIA: membership inference on losses, as an evaluate module."""

from dataclasses import asdict

import datasets
import evaluate
import torch

from hf_esc.evaluation.membership import attack_losses

_DESCRIPTION = """
Whether the loss of an image tells that the model was trained on it: the accuracy of a logistic regression on held-out
images, the area under the ROC curve, and the true positive rate at 1 % false positives, in %. Chance is 50, 50 and 1.
The values of a retrained model are the reference.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[float]`): The cross-entropy of each image under its true class, without augmentation.
    references (`list[int]`): 1 for members, the training images of the forgotten classes; 0 for non-members, their
        test images. At least 10 of each.
    seed (`int`, defaults to 0): Seed of the draw from the larger side and of the splits.

Returns:
    `dict`: in %, `accuracy` of the attack and its `spread` over 5 splits, `auc`, and `tpr_at_1_fpr` (None with fewer
    than 100 non-members); and the numbers of images: `members`, `nonmembers`, and `drawn`, those of each side that
    enter the accuracy.

Examples:
    >>> metric = evaluate.load("mia_score")
    >>> members, nonmembers = range(0, 100), range(20, 120)
    >>> result = metric.compute(predictions=[*members, *nonmembers], references=[1] * 100 + [0] * 100)
    >>> result["accuracy"], result["auc"], result["tpr_at_1_fpr"]
    (66.0, 68.0, 21.0)
    >>> result["members"], result["nonmembers"], result["drawn"]
    (100, 100, 100)
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
class MIAScore(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
            reference_urls=["https://huggingface.co/papers/2504.02199"],
        )

    def _compute(self, predictions, references, seed=0):
        if strange := sorted(set(references) - {0, 1}):
            raise ValueError(f"References are 1 for members and 0 for non-members, and some are {strange[:3]}.")
        losses, references = torch.tensor(predictions, dtype=torch.float64), torch.tensor(references)
        return asdict(attack_losses(losses[references == 1], losses[references == 0], seed=seed))
