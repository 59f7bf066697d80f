"""
ESC-T on the embedded models: each of the ten classes with three seeds, and what each of its settings does.

    OMP_NUM_THREADS=1 python benchmarks/esc_t.py
    OMP_NUM_THREADS=1 python benchmarks/esc_t.py --only tau

Writes `benchmarks/results/esc_t.json`, one entry for each experiment, model, class and setting; only what is missing
is run. `seeds` has accuracies after three runs with other seeds, and what a converged probe reads after the first;
`ablation` switches clip and threshold off (Table 3 of the ESC paper), `tau` varies τ (Table 4), `learning_rate` sets
the step of plain gradient descent where the default sets it by a rule, and `tolerance` lets some images stay.
"""

import json
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from embedded import after, features_and_predictions, head_accuracies, probe_accuracies
from esc_t_speed import QUIET
from performance import setting
from results import stopped_early
from transformers import HfArgumentParser

from hf_esc import ESCTTrainer, ESCTTrainingArguments
from hf_esc.data import image_batches, load_images
from hf_esc.embedded import embedded_models
from hf_esc.errors import IncompleteErasureWarning, MaskError
from hf_esc.loading import load_classifier, load_processor

RESULTS = Path(__file__).parent / "results" / "esc_t.json"
ALL = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
THREE = ["Trouser", "Shirt", "Bag"]
EXPERIMENTS: dict[str, tuple[list[str], list[dict[str, Any]]]] = {
    "seeds": (ALL, [{"seed": seed} for seed in (0, 1, 2)]),
    "ablation": (
        THREE,
        [{"clip": clip, "threshold": threshold} for clip in (True, False) for threshold in (True, False)],
    ),
    "tau": (THREE, [{"tau": tau} for tau in (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)]),
    "learning_rate": (THREE, [{"learning_rate": rate} for rate in (1e-3, 0.1, 1.0, 10.0, 100.0)]),
    "tolerance": (THREE, [{"tolerance": tolerance} for tolerance in (0.0, 0.01, 0.05)]),
}


@dataclass
class Arguments:
    only: str = field(default="", metadata={"help": "Run one experiment."})


class Subject:
    """One embedded model, its features of all images, and the features of each forget set."""

    def __init__(self, name: str, data):
        self.name, self.data = name, data
        self.model = load_classifier(name, device="cpu")
        self.processor = load_processor(self.model)
        self.splits = features_and_predictions(self.model, data, self.processor, name)
        self.forget_features: dict[int, Any] = {}

    @torch.no_grad()
    def forget_accuracy(self, erased, forget: int) -> float:
        """D_f of the erased model on the images themselves."""
        rows = self.data.select(self.data.train, [forget])
        hits = [
            erased(pixel_values=batch["pixel_values"]).logits.argmax(1) == forget
            for batch in image_batches(rows, self.processor, image_column=self.data.image_column, batch_size=100)
        ]
        return 100 * torch.cat(hits).double().mean().item()

    def run(self, forget: int, settings: dict[str, Any], *, probe: bool) -> dict[str, Any]:
        """One training, and what it leaves."""
        with tempfile.TemporaryDirectory() as scratch:
            args = ESCTTrainingArguments(scratch, **QUIET, **settings)
            forget_set = self.forget_features.get(forget, self.data.forget_set([forget]))
            trainer = ESCTTrainer(self.model, args, forget_set, processing_class=self.processor)
            self.forget_features[forget] = trainer.train_dataset
            trainer.remove_callback(transformers.PrinterCallback)
            start = time.perf_counter()
            try:
                trainer.train()
            except MaskError as error:
                return {"error": str(error), "before": head_accuracies(self.splits, forget)}
            seconds = time.perf_counter() - start
        erased = trainer.erased_model
        record = erased.config.erasures[-1]
        left = after(erased, self.splits)
        row = {
            **{key: record[key] for key in ("steps", "max_steps", "stopped", "step_size", "cut", "unchanged")},
            "before": head_accuracies(self.splits, forget),
            "after": head_accuracies(left, forget),
            "forget_train_images": self.forget_accuracy(erased, forget),
            "seconds": seconds,
        }
        if probe:
            row["probe"] = probe_accuracies(left, [forget])[forget]
        return row


def main() -> None:
    [arguments] = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore", IncompleteErasureWarning)  # the row says so
    data = load_images("embedded")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"setting": setting(1)}
    for name in embedded_models():
        subject = None
        for experiment, (classes, choices) in EXPERIMENTS.items():
            if arguments.only not in ("", experiment):
                continue
            for label in classes:
                for number, choice in enumerate(choices):
                    key = ", ".join(f"{setting_name}={value}" for setting_name, value in choice.items())
                    rows = results.setdefault(experiment, {}).setdefault(name, {}).setdefault(label, {})
                    if key in rows and not ("probe" in rows[key] and stopped_early(rows[key]["probe"])):
                        continue
                    subject = subject or Subject(name, data)
                    probe = experiment == "seeds" and number == 0
                    rows[key] = subject.run(data.label_names.index(label), choice, probe=probe)
                    shown = rows[key].get("after", rows[key].get("error"))
                    print(name, experiment, label, key, shown, file=sys.stderr, flush=True)
                    assert np.isfinite(rows[key]["before"]["retain_test"])
                    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
