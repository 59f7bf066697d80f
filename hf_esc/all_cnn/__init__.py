"""The All-CNN of the ESC paper's CIFAR-10 experiments as a transformers model."""

from typing import TYPE_CHECKING

from .configuration_all_cnn import AllCNNConfig

if TYPE_CHECKING:
    from .modeling_all_cnn import AllCNNForImageClassification

__all__ = ["AllCNNConfig", "AllCNNForImageClassification"]


def __getattr__(name: str):
    # Import lazily: the configuration is registered while transformers' modeling code is still being imported.
    if name != "AllCNNForImageClassification":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .modeling_all_cnn import AllCNNForImageClassification

    return AllCNNForImageClassification
