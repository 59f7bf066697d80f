"""
Knowledge retention on the embedded models: original, Retrain, random, ESC and ESC-T, by every probe and attack.

    python examples/train_embedded.py --dataset fashion_mnist_25k --architecture resnet --exclude Trouser \
        --output_dir build/retrain/resnet --num_train_epochs 24
    (and so for vit and all-cnn, with the settings in that script's docstring)
    OMP_NUM_THREADS=1 python benchmarks/knowledge_retention.py --retrain build/retrain

Writes `benchmarks/results/knowledge_retention.json`: for each model a report of `evaluate_unlearning`, where `model`
is the one that ESC has erased Trouser from. Only what is missing is run, or has a converged probe that was stopped
early. With `--short`, the curve and the attacks stay as they were: they take most of the time. So do the numbers of
Retrain without `--retrain`.
"""

import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from esc_t_speed import QUIET
from performance import setting
from results import parts_stopped_early, read, write
from transformers import HfArgumentParser

from hf_esc import ESCTTrainer, ESCTTrainingArguments, erase
from hf_esc.data import load_images
from hf_esc.embedded import embedded_models
from hf_esc.evaluation.attacks import ATTACKS
from hf_esc.evaluation.probes import PROBES
from hf_esc.evaluation.report_text import table
from hf_esc.evaluation.unlearning import evaluate_unlearning
from hf_esc.loading import load_classifier

RESULTS = Path(__file__).parent / "results" / "knowledge_retention.json"
FORGET, SEEDS = "Trouser", (0, 1, 2)


@dataclass
class Arguments:
    retrain: str = field(
        default="", metadata={"help": "Folder with a run of train_embedded.py --exclude Trouser for each model."}
    )
    short: bool = field(default=False, metadata={"help": "Neither the curve nor the attacks."})


def main() -> None:
    [arguments] = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    transformers.utils.logging.disable_progress_bar()
    data = load_images("embedded")
    forget = data.label_names.index(FORGET)
    results = read(RESULTS)
    for name in embedded_models():
        folder, known = Path(arguments.retrain) / name.split("/")[1] / "final", results.get(name)
        retrained = bool(arguments.retrain) and folder.is_dir()
        if not (retrained or known) or (known and not is_early(known, retrained=retrained, short=arguments.short)):
            continue
        original = load_classifier(name, device="cpu")
        with tempfile.TemporaryDirectory() as scratch:
            trainer = ESCTTrainer(original, ESCTTrainingArguments(scratch, seed=0, **QUIET), data.forget_set([forget]))
            trainer.train()
        torch.manual_seed(0)
        report = evaluate_unlearning(
            erase(original, data.forget_set([forget])),
            data,
            [forget],
            references=({"retrain": load_classifier(folder, device="cpu")} if retrained else {})
            | {"ESC-T": trainer.erased_model},
            probes=PROBES,
            curve=not arguments.short,
            attacks=() if arguments.short else ATTACKS,
            seeds=SEEDS,
            feature_dir=Path("build/features") / name.replace("/", "-"),
        )
        print(name, table(report), file=sys.stderr, flush=True)
        found = report.to_dict()
        found.pop("sha256")  # of the report alone
        if retrained:
            log = json.loads((folder / "training.json").read_text())
            found["retrain"] = {key: log[key] for key in ("command", "accuracy", "seconds", "train_images")}
        results[name] = (with_the_rest_of(found, known) if known else found) | {"setting": setting(1)}
        write(RESULTS, results)


def is_early(known: dict[str, Any], *, retrained: bool, short: bool) -> bool:
    """Whether what would be measured has a converged probe that was stopped early."""
    parts = {"retention"} if short else {"retention", "curve", "attacks"}
    columns = [model for column, model in known["models"].items() if column != "retrain" or retrained]
    return any(parts & set(parts_stopped_early(model)) for model in columns)


def with_the_rest_of(found: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """What was not measured again, from before. The tables say which of it has a probe that was stopped early."""
    for column, before in known["models"].items():
        model = found["models"].setdefault(column, before)
        for part in ("curve", "attacks"):
            model[part] = model[part] or before[part]
    return {"retrain": known["retrain"]} | found


if __name__ == "__main__":
    main()
