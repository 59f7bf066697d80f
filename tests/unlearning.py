"""What the tests of unlearning trainers share: a small learnt problem, quiet settings, and what comes out of a run."""

import tempfile
import warnings

import torch
from torch.nn import functional

from hf_esc.errors import IncompleteErasureWarning
from hf_esc.unlearning import METHODS, UnlearningTrainer

from .tiny import images, tiny

QUIET = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no"}
C = 4
NAMES = [f"shade {label}" for label in range(C)]
_FOLDER = tempfile.TemporaryDirectory(prefix="hf_esc-tests-")
_LEARNT: list = []


def pictures(label: int, count: int, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Noise on a shade that is the class."""
    noise = 0.5 * images(count, seed=seed * 100 + label)
    return {"pixel_values": noise + (label - 1.5) * 0.8, "labels": torch.full((count,), label)}


def learnt():
    """A tiny classifier that knows the shades; nothing may change it."""
    if not _LEARNT:
        model = tiny(NAMES).train()
        both = [pictures(label, 32, seed=9) for label in range(C)]
        x, y = (torch.cat([batch[key] for batch in both]) for key in ("pixel_values", "labels"))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for _ in range(60):
                optimizer.zero_grad()
                functional.cross_entropy(model(pixel_values=x).logits, y).backward()
                optimizer.step()
        _LEARNT.append(model.eval())
    return _LEARNT[0]


def forget_set(count: int = 24) -> list[dict[str, torch.Tensor]]:
    return [pictures(1, count)]


def retain_set(count: int = 16) -> list[dict[str, torch.Tensor]]:
    return [pictures(label, count) for label in (0, 2, 3)]


def made(method: str | type[UnlearningTrainer], model=None, forget=None, retain=None, **settings) -> UnlearningTrainer:
    trainer = METHODS[method] if isinstance(method, str) else method
    given = {
        name: settings.pop(name) for name in ("callbacks", "processing_class", "eval_dataset") if name in settings
    }
    settings = {"output_dir": _FOLDER.name, "per_device_train_batch_size": 8} | QUIET | settings
    sets = (forget if forget is not None else forget_set(), retain if retain is not None else retain_set())
    return trainer(model or learnt(), trainer.arguments(**settings), *sets, **given)


def trained(method: str | type[UnlearningTrainer], *args, resume=None, **settings) -> UnlearningTrainer:
    trainer = made(method, *args, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IncompleteErasureWarning)
        trainer.train(resume)
    return trainer


def rows(trainer: UnlearningTrainer, *which: int, side: str = "forget") -> dict:
    """A batch of one side, of these rows or of all."""
    found = getattr(trainer, side)
    return found.__getitems__(list(which) or list(range(len(found))))


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
