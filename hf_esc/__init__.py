"""
hf_esc: make an image classifier forget a class, in feature space.

Importing it registers ESC with the Auto classes of transformers, as soon as these are imported. The names below are
imported when they are first used. The other methods that train are in `hf_esc.unlearning`.
"""

import importlib
from typing import TYPE_CHECKING

from .registration import register
from .version import __version__

if TYPE_CHECKING:
    from .data.image_data import load_images
    from .erasure.esc import erase
    from .erasure.remap import remap
    from .errors import HfEscError
    from .evaluation.report import UnlearningReport
    from .evaluation.unlearning import evaluate_unlearning
    from .features.basis import principal_directions
    from .features.moments import SecondMoment
    from .features.sites import find_sites
    from .hub.verification import verify
    from .loading import load_classifier
    from .modeling.configuration_esc import ESCConfig
    from .modeling.modeling_esc import ESCFeatureModel, ESCModel
    from .training.trainer_esc_t import ESCTTrainer
    from .training.training_args_esc_t import ESCTTrainingArguments
    from .unlearning.trainer import UnlearningTrainer
    from .unlearning.training_args import UnlearningArguments

_HOMES = {
    "ESCConfig": "modeling.configuration_esc",
    "ESCFeatureModel": "modeling.modeling_esc",
    "ESCModel": "modeling.modeling_esc",
    "ESCTTrainer": "training.trainer_esc_t",
    "ESCTTrainingArguments": "training.training_args_esc_t",
    "HfEscError": "errors",
    "SecondMoment": "features.moments",
    "UnlearningArguments": "unlearning.training_args",
    "UnlearningReport": "evaluation.report",
    "UnlearningTrainer": "unlearning.trainer",
    "erase": "erasure.esc",
    "evaluate_unlearning": "evaluation.unlearning",
    "find_sites": "features.sites",
    "load_classifier": "loading",
    "load_images": "data.image_data",
    "principal_directions": "features.basis",
    "remap": "erasure.remap",
    "verify": "hub.verification",
}
__all__ = [
    "ESCConfig",
    "ESCFeatureModel",
    "ESCModel",
    "ESCTTrainer",
    "ESCTTrainingArguments",
    "HfEscError",
    "SecondMoment",
    "UnlearningArguments",
    "UnlearningReport",
    "UnlearningTrainer",
    "__version__",
    "erase",
    "evaluate_unlearning",
    "find_sites",
    "load_classifier",
    "load_images",
    "principal_directions",
    "remap",
    "verify",
]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_esc' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register()
