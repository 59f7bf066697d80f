"""What the tests of ESC-T share: settings of a quiet run, what comes out of one, and the method worked out by hand."""

import tempfile
import warnings

import torch
from torch.nn import functional
from transformers import TrainerCallback

from hf_esc import ESCTTrainer, ESCTTrainingArguments
from hf_esc.data import image_batches
from hf_esc.errors import IncompleteErasureWarning
from hf_esc.loading import load_processor
from hf_esc.modeling.projection import MaskedFactor

TROUSER, BAG, BOOT = 1, 8, 9
QUIET = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no"}
_FOLDER = tempfile.TemporaryDirectory(prefix="hf_esc-tests-")


def arguments(**settings) -> ESCTTrainingArguments:
    return ESCTTrainingArguments(**({"output_dir": _FOLDER.name} | QUIET | settings))


def made(model, data, *, callbacks=None, **settings) -> ESCTTrainer:
    given = {name: settings.pop(name) for name in ("eval_dataset", "compute_metrics") if name in settings}
    return ESCTTrainer(model, arguments(**settings), data, callbacks=callbacks, **given)


def trained(model, data, *, resume=None, **settings) -> ESCTTrainer:
    """A trainer after its run, the completeness of which is beside the point."""
    trainer = made(model, data, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IncompleteErasureWarning)
        trainer.train(resume)
    return trainer


def soft(trainer) -> torch.Tensor:
    """The mask as it was trained."""
    return trainer.model.masks[0].detach().clone()


def factor(trainer) -> MaskedFactor:
    """What is in front of the head of the erased model."""
    [only] = trainer.erased_model.projections[0].factors
    return only


# What differs between the records of two runs that are the same.
OF_A_RUN = {"date": None, "record_sha256": None}


def record(trainer) -> dict:
    return trainer.erased_model.config.erasures[-1]


def rows(features, *which) -> dict[str, torch.Tensor]:
    """A batch of these rows, `range`-like, or of all."""
    return features.__getitems__(list(range(*which or (len(features),))))


@torch.no_grad()
def right(model, dataset) -> float:
    """How many images of a data set a model gets right, in %."""
    processed = image_batches(dataset, load_processor(model), image_column="image", label_column="label")
    hits = [model(pixel_values=batch["pixel_values"]).logits.argmax(1) == batch["labels"] for batch in processed]
    return 100 * torch.cat(hits).double().mean().item()


class Watch(TrainerCallback):
    """Keeps the mask after each step, and how many images are right with it as it is and binarised."""

    def __init__(self, batch=None):
        self.batch, self.masks, self.right = batch, [], []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.masks.append(model.masks[0].detach().clone())
        if self.batch is not None:
            looks = (model.still_right(**self.batch, trained=trained) for trained in (True, False))
            self.right.append(tuple(int(look.sum()) for look in looks))


def by_hand(head, u, batch, *, steps, tau=0.7, lr=None, clip=True) -> list[torch.Tensor]:
    """
    The mask after each step of plain gradient descent with all images in one batch, in double precision: Eq. 3 to 6.

    Without `lr`, each gradient is divided by its largest entry and the step is 10 / `steps`.
    """
    z, y, u = batch["features"].double(), batch["labels"], u.double()
    weight, bias = head.weight.detach().double(), head.bias.detach().double()

    def logits(mask):
        return z @ (u * mask) @ (u * mask).T @ weight.T + bias

    mask, masks = torch.ones_like(u), []
    for _ in range(steps):
        mask.requires_grad_()
        answers = logits(mask)
        right = (answers.argmax(1) == y) | (logits(mask > tau).argmax(1) == y)
        loss = -functional.cross_entropy(answers[right], y[right])
        [gradient] = torch.autograd.grad(loss, mask)
        step = lr * gradient if lr is not None else 10 / steps * gradient / gradient.abs().max()
        mask = mask.detach() - step
        mask = mask.clamp(0, 1) if clip else mask
        masks.append(mask)
        if not (logits(mask > tau).argmax(1) == y).any():
            break
    return masks
