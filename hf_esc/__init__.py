"""
hf_esc: make an image classifier forget a class, in feature space.

Importing it registers ESC with the Auto classes of transformers, as soon as these are imported.
"""

import importlib
from typing import TYPE_CHECKING

from .registration import register
from .version import __version__

_HOMES = {
    "ESCConfig": "modeling.configuration_esc",
    "ESCModel": "modeling.modeling_esc",
    "ESCFeatureModel": "modeling.modeling_esc",
    "ESCTTrainer": "training.trainer_esc_t",
    "ESCTTrainingArguments": "training.training_args_esc_t",
    "erase": "erasure.esc",
    "SecondMoment": "features.moments",
    "principal_directions": "features.basis",
    "SiteGroup": "features.sites",
    "find_sites": "features.sites",
    "AllCNNConfig": "all_cnn",
    "AllCNNForImageClassification": "all_cnn",
    "HfEscError": "errors",
    **dict.fromkeys(
        (
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
        ),
        "unlearning",
    ),
}
__all__ = [
    "AllCNNConfig",
    "AllCNNForImageClassification",
    "BadTeacherArguments",
    "BadTeacherTrainer",
    "BoundaryShrinkArguments",
    "BoundaryShrinkTrainer",
    "DELETEArguments",
    "DELETETrainer",
    "ESCConfig",
    "ESCFeatureModel",
    "ESCModel",
    "ESCTTrainer",
    "ESCTTrainingArguments",
    "FinetuneArguments",
    "FinetuneTrainer",
    "HfEscError",
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
    "SecondMoment",
    "SiteGroup",
    "UnlearningArguments",
    "UnlearningTrainer",
    "__version__",
    "erase",
    "find_sites",
    "fisher_forgetting",
    "principal_directions",
]

if TYPE_CHECKING:
    from .all_cnn import AllCNNConfig, AllCNNForImageClassification
    from .erasure.esc import erase
    from .errors import HfEscError
    from .features.basis import principal_directions
    from .features.moments import SecondMoment
    from .features.sites import SiteGroup, find_sites
    from .modeling.configuration_esc import ESCConfig
    from .modeling.modeling_esc import ESCFeatureModel, ESCModel
    from .training.trainer_esc_t import ESCTTrainer
    from .training.training_args_esc_t import ESCTTrainingArguments
    from .unlearning import (
        BadTeacherArguments,
        BadTeacherTrainer,
        BoundaryShrinkArguments,
        BoundaryShrinkTrainer,
        DELETEArguments,
        DELETETrainer,
        FinetuneArguments,
        FinetuneTrainer,
        L1SparseArguments,
        L1SparseTrainer,
        LayerAttackArguments,
        LayerAttackTrainer,
        NegGradArguments,
        NegGradPlusArguments,
        NegGradPlusTrainer,
        NegGradTrainer,
        RandomLabelArguments,
        RandomLabelTrainer,
        RetrainArguments,
        RetrainTrainer,
        SalUnArguments,
        SalUnTrainer,
        SCRUBArguments,
        SCRUBTrainer,
        UnlearningArguments,
        UnlearningTrainer,
        fisher_forgetting,
    )


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_esc' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register()
