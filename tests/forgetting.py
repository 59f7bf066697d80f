"""What the tests of all Trainers share: each of them, ESC-T and DELETE as examples, and what comes out of a run."""

import warnings

from hf_esc import ESCTTrainer
from hf_esc.errors import IncompleteErasureWarning
from hf_esc.unlearning import METHODS

from . import esc_t, unlearning
from .unlearning import forget_set, learnt

TRAINERS = {"esc-t": ESCTTrainer, **METHODS}


def made(method: str, **given):
    if method == "esc-t":
        return esc_t.made(learnt(), forget_set(), **given)
    return unlearning.made(method, **given)


def quietly_trained(trainer, resume=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IncompleteErasureWarning)
        trainer.train(resume)
    return trainer


def state(trainer) -> dict:
    """What was trained, of the model that came out."""
    return dict(trainer.result.state_dict())
