"""
Knowledge retention on the embedded models: original, Retrain, random, ESC and ESC-T, by every probe and attack.

    python examples/train_embedded.py --dataset fashion_mnist_25k --architecture resnet --exclude Trouser \
        --output_dir build/retrain/resnet --num_train_epochs 24
    (and so for vit and all-cnn, with the settings in that script's docstring)
    OMP_NUM_THREADS=1 python benchmarks/knowledge_retention.py --retrain build/retrain

Writes `benchmarks/results/knowledge_retention.json`: for each model a report of `evaluate_unlearning`, where `model`
is the one that ESC has erased Trouser from. Only what is missing is run.
"""

import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from esc_t_speed import QUIET
from performance import setting
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
    retrain: str = field(metadata={"help": "Folder with a run of train_embedded.py --exclude Trouser for each model."})


def main() -> None:
    [arguments] = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    transformers.utils.logging.disable_progress_bar()
    data = load_images("embedded")
    forget = data.label_names.index(FORGET)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in embedded_models():
        folder = Path(arguments.retrain) / name.split("/")[1] / "final"
        if name in results or not folder.is_dir():
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
            references={"retrain": load_classifier(folder, device="cpu"), "ESC-T": trainer.erased_model},
            probes=PROBES,
            curve=True,
            attacks=ATTACKS,
            seeds=SEEDS,
        )
        print(name, table(report), file=sys.stderr, flush=True)
        log = json.loads((folder / "training.json").read_text())
        results[name] = report.to_dict() | {
            "retrain": {key: log[key] for key in ("command", "accuracy", "seconds", "train_images")},
            "setting": setting(1),
        }
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
