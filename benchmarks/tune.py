"""
Learning rates for the methods that have one, with one budget for all: seven trials each, on validation images.

    OMP_NUM_THREADS=1 python benchmarks/tune.py --model embedded/resnet
    OMP_NUM_THREADS=1 python benchmarks/tune.py --model embedded/resnet --fraction 0.1 --retrain build/retrain

Of each class a tenth of the embedded training images is held out. A method forgets the training images that are left
and is judged by the harmonic mean of 100 - D_f and D_r on those that were held out; test images are not looked at.
The first trials are powers of ten, from 1e-5 to 1e-1, and the last two are half a power on either side of the best.
Where random images are forgotten (`--fraction`), it is judged by how far its D_f and D_r are in the mean from those of
the Retrain reference (`DIR/MODEL-random`, of `examples/train_embedded.py --exclude_fraction 0.1`). Nothing is held out
then, as Retrain has learnt all that it was not to forget; test images are not looked at either.

All other settings are the reference's. Fisher forgetting has the strength of its noise instead, from 1e-9 to 1e-5.

Where a run takes long, `--epochs 2` makes the trials of methods that train on retain images shorter, of all alike; the
file and the table say so.

Writes every trial into `benchmarks/results/tuning/`; only what is missing is run.
"""

import json
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from methods import METHODS, forget, images_sha256
from performance import setting
from results import read, write
from transformers import HfArgumentParser, PreTrainedModel
from transformers.utils import logging

from hf_esc.data import ImageData, image_channels, load_images
from hf_esc.errors import DivergenceError
from hf_esc.evaluation.accuracy import harmonic_mean
from hf_esc.features.stream import model_inputs
from hf_esc.loading import load_classifier, load_processor
from hf_esc.modeling.fingerprints import weights_sha256

RESULTS = Path(__file__).parent / "results" / "tuning"
COARSE = tuple(10.0**power for power in (-5, -4, -3, -2, -1))
# Its learning rate is the original's recipe, and not a strength of forgetting.
UNTUNED = {"retrain"}
# What a trial sets besides, as the experiments do in their files.
MORE: dict[str, dict[str, Any]] = {"fisher": {"num_images": 500}}
# With fewer epochs than these a method has not the phases that its settings are about.
LEAST_EPOCHS = 3


@dataclass
class Arguments:
    model: str = field(default="embedded/resnet", metadata={"help": "The model to tune for."})
    forget: str = field(default="Trouser", metadata={"help": "The class to tune with."})
    fraction: float = field(default=0.0, metadata={"help": "Instead of a class: the share of the training images."})
    retrain: str = field(default="", metadata={"help": "Folder with the Retrain reference of these images."})
    methods: list[str] = field(default_factory=list, metadata={"help": "These methods alone."})
    without_retain: bool = field(default=False, metadata={"help": "Only methods that need no retain images."})
    epochs: int | None = field(
        default=None, metadata={"help": "Of a trial, for methods with retain images; their own by default."}
    )


@dataclass(frozen=True)
class Task:
    """
    What the trials forget, and what they are judged by.

    Args:
        request (`list[str] | float`): The classes, or the share of the training images.
        forget, retain (`datasets.Dataset`): What is trained on.
        judged (`tuple[Dataset, Dataset]`): Forget and retain images whose accuracies count.
        target (`tuple[float, float]`, *optional*): Those of the Retrain reference, which are to be met; without it
            the first should be 0 and the second 100.
        settings (`dict`): Of all trials.
    """

    request: list[str] | float
    forget: Dataset
    retain: Dataset
    judged: tuple[Dataset, Dataset]
    target: tuple[float, float] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def merit(self, found: tuple[float, float]) -> dict[str, float]:
        """How good these accuracies are: `hm` is to be large, `gap` small."""
        if self.target is None:
            return {"hm": harmonic_mean(*found)}
        return {"gap": sum(abs(a - b) for a, b in zip(found, self.target, strict=True)) / 2}


def of_classes(model: PreTrainedModel, data: ImageData, request: list[str]) -> Task:
    """To forget classes."""
    labels = data.resolve(request, model.config)
    train, held = (data.train.select(rows) for rows in split(data))
    sides = [[data.select(part, labels, keep=keep) for keep in (True, False)] for part in (train, held)]
    return Task(request, *sides[0], judged=(sides[1][0], sides[1][1]))


def of_images(model: PreTrainedModel, data: ImageData, fraction: float, retrain: PreTrainedModel) -> Task:
    """To forget a random part of the images as if they had never been there."""
    forgotten = data.rows_to_forget(fraction)
    sides = data.rows(forgotten), data.rows(forgotten, keep=False)
    processor = load_processor(model)
    target = (accuracy(retrain, sides[0], processor, data), accuracy(retrain, sides[1], processor, data))
    return Task(fraction, *sides, judged=sides, target=target, settings={"scenario": "images"})


def tuning_file(model: str, fraction: float = 0.0) -> Path:
    """Where the trials of a model are."""
    return RESULTS / f"{model.split('/')[-1]}{'-random' if fraction else ''}.json"


def shorter(method: str, epochs: int | None) -> dict[str, Any]:
    """What makes a trial shorter than a run: fewer epochs, or a fifth of the images of Fisher forgetting."""
    row = METHODS[method]
    if epochs is None or not (row.uses_retain and row.edits_weights):
        return {}
    if method == "fisher":
        return {"num_images": 100}
    own = next(field.default for field in fields(row.load_arguments()) if field.name == "num_train_epochs")
    return {"num_train_epochs": epochs} if own > max(epochs, LEAST_EPOCHS) else {}


def tuned_name(method: str) -> str:
    """What is tuned."""
    return "alpha" if method == "fisher" else "learning_rate"


def split(data: ImageData, seed: int = 0) -> tuple[list[int], list[int]]:
    """Rows: nine tenths of the training images of each class, and the tenth that is held out."""
    labels = torch.tensor(data.train[data.label_column][:])
    held = torch.zeros(len(labels), dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        held[rows[torch.randperm(len(rows), generator=generator)[: len(rows) // 10]]] = True
    return (~held).nonzero().flatten().tolist(), held.nonzero().flatten().tolist()


@torch.no_grad()
def accuracy(model: PreTrainedModel, images: Dataset, processor, data: ImageData) -> float:
    """In %."""
    right = []
    there = torch.tensor(data.labels_in(model.config))
    for batch in data.batches(images, processor, batch_size=100, num_channels=image_channels(model.config)):
        labels = there[batch["labels"]]
        right.append(model(**model_inputs(model, batch)).logits.argmax(dim=1).cpu() == labels)
    return 100 * torch.cat(right).double().mean().item()


def best(trials: list[dict[str, Any]]) -> float | None:
    """The value of the most merit, the smaller of two that are equal; None where all diverged."""
    good = [trial for trial in trials if "error" not in trial]
    if not good:
        return None
    return min(good, key=lambda trial: (trial["gap"] if "gap" in trial else -trial["hm"], trial["value"]))["value"]


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def tune(
    model: PreTrainedModel, data: ImageData, task: Task, methods: list[str], file: Path, epochs: int | None = None
) -> None:
    """Run the trials of each method that are not in the file yet."""
    processor = load_processor(model)
    common = {"weights": weights_sha256(model), "images": images_sha256(data), "forget": task.request}

    def subject(method: str) -> dict[str, Any]:
        """What all trials of a method have in common."""
        own = {"settings": MORE.get(method, {}) | task.settings, "target": task.target and list(task.target)}
        return common | {"shorter": shorter(method, epochs)} | {name: value for name, value in own.items() if value}

    def keep(method: str, trials: list[dict[str, Any]], chosen: float | None) -> None:
        entry = {"tuned": tuned_name(method), "best": chosen, **subject(method), "trials": trials}
        write(file, read(file) | {method: entry | {"setting": setting(1)}})

    for method in methods:
        entry = read(file).get(method, {})
        trials = entry.get("trials", [])
        if entry and (other := [name for name, own in subject(method).items() if entry.get(name) != own]):
            raise SystemExit(
                f"{file} has trials of {method} with other {', '.join(other)}. Take that entry out to begin anew."
            )

        def trial(value: float, method=method, trials=trials) -> None:
            if any(_same(done["value"], value) for done in trials):
                return
            settings = {tuned_name(method): value} | MORE.get(method, {}) | shorter(method, epochs) | task.settings
            row: dict[str, Any] = {"value": value}
            try:
                found, spent = forget(method, model, data, task.forget, task.retain, processor, settings, seed=0)
                gone, kept = (accuracy(found, images, processor, data) for images in task.judged)
                row |= {"forget": gone, "retain": kept, **task.merit((gone, kept)), "seconds": spent["seconds"]}
            except DivergenceError as error:
                row["error"] = str(error)
            trials.append(row)
            print(file.stem, method, json.dumps(row), file=sys.stderr, flush=True)
            keep(method, trials, None)  # a method that is tuned in part has no best value yet

        coarse = [_rounded(rate * 1e-4) for rate in COARSE] if method == "fisher" else list(COARSE)
        for value in coarse:
            trial(value)
        middle = best([done for done in trials if any(_same(done["value"], value) for value in coarse)])
        if middle is not None:
            for factor in (10**-0.5, 10**0.5):
                trial(_rounded(middle * factor))
        if read(file)[method]["best"] != best(trials):
            keep(method, trials, best(trials))


def _same(one: float, other: float) -> bool:
    return abs(one / other - 1) < 1e-2


def main() -> None:
    [arguments] = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    names = [name for name, row in METHODS.items() if row.edits_weights and name not in UNTUNED]
    names = [name for name in names if not arguments.methods or name in arguments.methods]
    names = [name for name in names if not (arguments.without_retain and METHODS[name].uses_retain)]
    model = load_classifier(arguments.model, device="cpu")
    data = load_images("embedded")
    if arguments.fraction:
        folder = Path(arguments.retrain) / f"{arguments.model.split('/')[-1]}-random" / "final"
        if not arguments.retrain or not folder.is_dir():
            raise SystemExit(
                f"There is no Retrain reference in {folder}. Make it with `examples/train_embedded.py "
                f"--exclude_fraction {arguments.fraction} --output_dir {folder.parent}` and its other arguments, and "
                "name the folder above that with `--retrain`."
            )
        task = of_images(model, data, arguments.fraction, load_classifier(str(folder), device="cpu"))
        names = [name for name in names if name != "fisher"]  # its noise has no such experiment
    else:
        task = of_classes(model, data, [arguments.forget])
    tune(model, data, task, names, tuning_file(arguments.model, arguments.fraction), arguments.epochs)


if __name__ == "__main__":
    main()
