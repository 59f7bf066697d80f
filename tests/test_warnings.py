"""A warning points at the caller's line, from however deep it comes."""

import warnings

import pytest
import torch

from hf_esc import erase, remap
from hf_esc.errors import IncompleteErasureWarning
from hf_esc.unlearning import fisher_forgetting

from .esc_t import made as made_mask
from .unlearning import forget_set, learnt, made, pictures, retain_set


def mixed() -> list[dict[str, torch.Tensor]]:
    """Images of two classes, of which one direction cannot hide both."""
    return [pictures(1, 12), pictures(2, 12)]


def wrong() -> list[dict[str, torch.Tensor]]:
    """Images whose labels the model gives to few of them."""
    return [pictures(0, 30) | {"labels": torch.full((30,), 1)}, pictures(1, 2)]


CALLS = {
    "erase": lambda: erase(learnt(), [*wrong(), pictures(1, 2)], rank=1),
    "remap": lambda: remap(learnt(), forget_set(), retain_set(), bank_size=8, threshold=0.858),
    "fisher": lambda: fisher_forgetting(learnt(), forget_set(), retain_set(), alpha=1e-12),
    "delete": lambda: made("delete", learning_rate=1e-9, num_train_epochs=1).train(),
    "esc-t": lambda: made_mask(learnt(), mixed(), max_steps=1, tau=0.95).train(),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_warning_points_at_the_line_that_called(name):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CALLS[name]()
    incomplete = [warning for warning in caught if issubclass(warning.category, IncompleteErasureWarning)]
    assert incomplete, [str(warning.message) for warning in caught]
    assert {warning.filename for warning in incomplete} == {__file__}
