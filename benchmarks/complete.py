"""
Say which rows of the experiments are missing, of all methods, models, classes and seeds.

    python benchmarks/complete.py

The exit code is 1 if any is. That a new method has no rows yet is no fault of the code, so no test asks for this.
"""

import sys

import report
import report_unlearning

from hf_esc.methods import METHODS

CLASSES, SEEDS = ("Trouser", "Shirt", "Bag"), (0, 1, 2)
MODELS = ("embedded/all-cnn", "embedded/resnet", "embedded/vit")
# What forgets classes alone, and so has no row where images were forgotten.
CLASSES_ALONE = {"random", "remap", "fisher"}
ALL = {*report_unlearning.REFERENCES, *METHODS}


def table_1() -> set[tuple]:
    """(experiment, method, class, seed). On two models, one run is enough of a method that reads retain images."""
    wanted = set()
    for experiment in ("table1-resnet", "table1-all-cnn", "table1-vit"):
        for label in ALL:
            once = experiment != "table1-resnet" and label in report_unlearning.READS_RETAIN and label != "remap"
            classes, seeds = (CLASSES[:1], SEEDS[:1]) if once else (CLASSES, SEEDS)
            wanted |= {(experiment, label, name, seed) for name in classes for seed in seeds}
        for row in report_unlearning.rows_of(experiment):
            wanted.discard((experiment, row["label"], *row["request"], row["seed"]))
    return wanted


def table_5() -> set[tuple]:
    """(experiment, method, seed). Without Retrain, a method that forgets random images has no gap to show."""
    found = {(row["label"], row["seed"]) for row in report_unlearning.rows_of("table5")}
    wanted = {(label, seed) for label in ALL - CLASSES_ALONE for seed in SEEDS}
    return {("table5", *row) for row in wanted - found}


def remap() -> set[tuple]:
    """("remap", model, class, seed of the bank)."""
    results = report.load("remap")
    banks = {
        (model, name, int(key.removeprefix("seed=")))
        for model in results.keys() & set(MODELS)
        for name, entry in results[model].items()
        for key in entry
        if key.startswith("seed=")
    }
    wanted = {(model, name, seed) for model in MODELS for name in CLASSES for seed in SEEDS}
    return {("remap", *row) for row in wanted - banks}


def main() -> None:
    missing = sorted({*table_1(), *table_5(), *remap()}, key=str)
    for row in missing:
        print("missing:", *row)
    if not missing:
        print("Every method has its rows.")
    sys.exit(bool(missing))


if __name__ == "__main__":
    main()
