"""A Trainer whose checkpoints hold no pickle."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer

from ..errors import CheckpointError, warn
from .training_state import load_state, save_state


class SafetensorsTrainer(Trainer):
    """
    A Trainer that writes optimizer, schedule, gradient scaler and random states to safetensors and JSON.

    transformers pickles all of these, and a pickle from the Hub or a shared folder can run any code. A run that goes
    on takes the weights of its checkpoint, also where these are stored under other names.
    """

    optimizer: Any
    lr_scheduler: Any

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or self.args.output_dir or ".")
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, and nothing reads it

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.should_save:
            scaler = getattr(self.accelerator, "scaler", None)
            save_state(
                Path(output_dir) / "optimizer.safetensors",
                {
                    "optimizer": self.optimizer.state_dict(),
                    "scheduler": self.lr_scheduler.state_dict(),
                    "scaler": scaler.state_dict() if scaler is not None else None,
                },
            )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        file = Path(checkpoint or "") / "optimizer.safetensors"
        if checkpoint is None:
            return
        if not file.is_file():
            warn(
                f"{checkpoint} was saved with `save_only_model`: optimizer and schedule begin anew, and the result "
                "can differ from that of a run without an interruption."
            )
            return
        state = load_state(file)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            self.lr_scheduler.load_state_dict(state["scheduler"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{file} is of another optimizer or schedule: {type(error).__name__}: {error}. A run goes on with "
                "those that it began with; for others begin a new run."
            ) from error
        if state["scaler"] is not None and getattr(self.accelerator, "scaler", None) is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _save_scaler(self, output_dir: str) -> None:
        pass  # it is saved with the optimizer

    def _load_scaler(self, checkpoint: str | None) -> None:
        pass

    def _rng_file(self, folder: str) -> Path:
        return Path(folder) / f"rng_state_{self.args.process_index}.safetensors"

    def _save_rng_state(self, output_dir: str) -> None:
        states = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.random.get_rng_state()}
        if torch.accelerator.is_available():
            states["device"] = torch.get_device_module().get_rng_state()
        save_state(self._rng_file(output_dir), states)
        # The first process writes the file that makes a checkpoint whole next, so all others have to be done.
        self.accelerator.wait_for_everyone()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self._rng_file(checkpoint).is_file():
            return
        states = load_state(self._rng_file(checkpoint))
        random.setstate(states["python"])
        np.random.set_state(states["numpy"])
        torch.random.set_rng_state(states["cpu"])
        if "device" in states and torch.accelerator.is_available():
            torch.get_device_module().set_rng_state(states["device"])

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """
        Load weights as `from_pretrained` does.

        transformers writes the weights of some architectures (ViT) under the names of earlier versions. The Trainer
        itself takes the names in the file as they are: it leaves the weights as they were initialised, warns, and goes
        on.
        """
        target: Any = self.model if model is None else model
        stored, info = type(target).from_pretrained(resume_from_checkpoint, output_loading_info=True)
        if bad := sorted(str(key) for key in [*info["missing_keys"], *info["mismatched_keys"]]):
            raise CheckpointError(f"{resume_from_checkpoint} lacks weights of {type(target).__name__}: {bad[:5]}.")
        target.load_state_dict(stored.state_dict())

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))
