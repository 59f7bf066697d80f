"""
Unlearning by editing weights: DELETE and the methods that ESC is compared with, each a Trainer of its own.

`METHODS` maps the names of these methods on the command line to their Trainers. Fisher forgetting is not trained and
is a function, [`fisher_forgetting`][hf_esc.unlearning.fisher.fisher_forgetting].
"""

from .bad_teacher import BadTeacherArguments, BadTeacherTrainer
from .boundary_shrink import BoundaryShrinkArguments, BoundaryShrinkTrainer
from .delete import DELETEArguments, DELETETrainer
from .finetune import (
    FinetuneArguments,
    FinetuneTrainer,
    L1SparseArguments,
    L1SparseTrainer,
    RetrainArguments,
    RetrainTrainer,
)
from .fisher import fisher_forgetting
from .layer_attack import LayerAttackArguments, LayerAttackTrainer
from .neg_grad import NegGradArguments, NegGradPlusArguments, NegGradPlusTrainer, NegGradTrainer
from .random_label import RandomLabelArguments, RandomLabelTrainer, SalUnArguments, SalUnTrainer
from .scrub import SCRUBArguments, SCRUBTrainer
from .trainer import UnlearningTrainer
from .training_args import UnlearningArguments

METHODS: dict[str, type[UnlearningTrainer]] = {
    "delete": DELETETrainer,
    "neg-grad": NegGradTrainer,
    "neg-grad-plus": NegGradPlusTrainer,
    "random-label": RandomLabelTrainer,
    "boundary-shrink": BoundaryShrinkTrainer,
    "lau": LayerAttackTrainer,
    "bad-teacher": BadTeacherTrainer,
    "scrub": SCRUBTrainer,
    "salun": SalUnTrainer,
    "finetune": FinetuneTrainer,
    "l1-sparse": L1SparseTrainer,
    "retrain": RetrainTrainer,
}

__all__ = [
    "METHODS",
    "BadTeacherArguments",
    "BadTeacherTrainer",
    "BoundaryShrinkArguments",
    "BoundaryShrinkTrainer",
    "DELETEArguments",
    "DELETETrainer",
    "FinetuneArguments",
    "FinetuneTrainer",
    "L1SparseArguments",
    "L1SparseTrainer",
    "LayerAttackArguments",
    "LayerAttackTrainer",
    "NegGradArguments",
    "NegGradPlusArguments",
    "NegGradPlusTrainer",
    "NegGradTrainer",
    "RandomLabelArguments",
    "RandomLabelTrainer",
    "RetrainArguments",
    "RetrainTrainer",
    "SCRUBArguments",
    "SCRUBTrainer",
    "SalUnArguments",
    "SalUnTrainer",
    "UnlearningArguments",
    "UnlearningTrainer",
    "fisher_forgetting",
]
