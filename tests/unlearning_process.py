"""What each of several processes does that train unlearning methods."""

import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file

from hf_esc.errors import IncompleteErasureWarning
from tests.unlearning import learnt, made, pictures

# What each method is run with; batches of two processes make one of 8 forget (and 8 retain) images.
SETTINGS = {
    "delete": {"batch_norm": "eval"},
    "lau": {},
    "salun": {"batch_norm": "eval"},
    "neg-grad-plus": {"batch_norm": "eval", "alpha": 0.6},
    "delete, until a tolerance": {"batch_norm": "train", "tolerance": 0.3, "num_train_epochs": 30},
}


def run(name: str, processes: int):
    """What a run leaves, and how many steps it took. A step has a multiple of two images of each side."""
    method = name.split(",")[0]
    settings = {"num_train_epochs": 2, "learning_rate": 0.01, "retain_batch_size": 8 // processes} | SETTINGS[name]
    settings["per_device_train_batch_size"] = 8 // processes
    trainer = made(method, learnt(), [pictures(1, 24)], [pictures(0, 24), pictures(2, 24)], **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IncompleteErasureWarning)
        trainer.train()
    return dict(trainer.model.state_dict()) | {"steps": torch.tensor(trainer.state.global_step)}


def train(folder: str, methods: list[str]) -> None:
    """Run each method, and leave what it leaves in a file of this process."""
    for method in methods:
        found = run(method, 2)
        rank = torch.distributed.get_rank()
        save_file({name: value.contiguous() for name, value in found.items()}, Path(folder) / f"{method}-{rank}")
