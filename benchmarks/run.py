"""
Run experiments: each file in `benchmarks/experiments/` is one, and its results stand under the same name in
`benchmarks/results/experiments/`.

    OMP_NUM_THREADS=1 python benchmarks/run.py table1-resnet --retrain build/retrain
    OMP_NUM_THREADS=1 python benchmarks/run.py              # all of them
    OMP_NUM_THREADS=1 python benchmarks/run.py --quick      # one class, one seed, forget-only methods: a few minutes

A row is one method, one request and one seed. It is run again only if its settings, the model's weights, the images
and how they are read, a reference's weights or what is measured have changed, and if its converged probe was stopped
early (`--again METHOD` where other code has changed).
Rows are written one by one, so a run that was killed goes on.

Learning rates are those of `tune.py`. The Retrain references are runs of `examples/train_embedded.py --exclude CLASS`
in `DIR/MODEL-CLASS`, such as `build/retrain/resnet-Trouser`, and `--exclude_fraction 0.1` in `DIR/MODEL-random`.
Without `--retrain` these rows stay as they are, and are left out of the tables where the images are no longer theirs.
"""

import dataclasses
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from methods import forget, images_sha256, reading_of
from performance import setting
from report_unlearning import READS_RETAIN, REFERENCES
from results import any_stopped_early, read, write
from transformers import HfArgumentParser, PreTrainedModel
from transformers.utils import logging
from tune import tuned_name, tuning_file

from hf_esc.data import load_images
from hf_esc.errors import HfEscError
from hf_esc.evaluation.differences import class_similarity, weight_differences
from hf_esc.evaluation.forgotten import Forgotten
from hf_esc.evaluation.measures import measure
from hf_esc.evaluation.model_features import ModelFeatures, model_features
from hf_esc.loading import load_classifier, load_processor, random_network
from hf_esc.modeling.fingerprints import weights_sha256

HERE = Path(__file__).parent


@dataclass
class Arguments:
    experiments: list[str] = field(default_factory=list, metadata={"help": "Names of experiments; all by default."})
    retrain: str = field(default="", metadata={"help": "Folder with the Retrain references."})
    output: str = field(default="", metadata={"help": "Folder of results; the committed ones by default."})
    again: list[str] = field(default_factory=list, metadata={"help": "Methods to run again whatever there is."})
    methods: list[str] = field(default_factory=list, metadata={"help": "These methods alone."})
    quick: bool = field(default=False, metadata={"help": "One request, one seed, methods without retain images."})


@dataclass
class Experiment:
    """
    Args:
        title: What it shows.
        model, data: Ids, folders or embedded ones.
        image_column, label_column: Of the data, where they are not clear.
        requests: What is to be forgotten: lists of classes.
        fraction: Instead, the share of the training images that is to be forgotten, of all classes.
        in_turn: Whether a request is made of the model that has forgotten those before it.
        seeds: Of the methods' randomness, and of the probes.
        methods: Each `{"method": …, "label": …, "settings": {…}, "tuned": …, "seeds": […], "requests": […]}`; all but
            the first can be left out.
        probes: Of what is left in the features.
        details: Of the first seed, `weights` for the difference of each layer (Fig. 2), `similarity` for that of class
            means (Fig. 3).
    """

    title: str
    model: str
    methods: list[dict[str, Any]]
    requests: list[list[str]] = field(default_factory=list)
    data: str = "embedded"
    image_column: str | None = None
    label_column: str | None = None
    fraction: float = 0.0
    in_turn: bool = False
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    probes: list[str] = field(default_factory=lambda: ["paper", "converged"])
    details: list[str] = field(default_factory=list)


class NotTunedError(Exception):
    """A method whose learning rate has not been looked for yet."""


def settings_of(method: dict[str, Any], experiment: Experiment, tuning: Path) -> dict[str, Any]:
    """With the tuned value."""
    settings = dict(method.get("settings", {}))
    if method.get("tuned"):
        found = read(tuning).get(method["method"])
        if found is None or found["best"] is None:
            what = f" --fraction {experiment.fraction} --retrain DIR" if experiment.fraction else ""
            raise NotTunedError(
                f"{method['method']} is not tuned for {experiment.model}: run `python benchmarks/tune.py --model "
                f"{experiment.model}{what} --methods {method['method']}` (`make tune` has the lengths of its trials)."
            )
        settings = {tuned_name(method["method"]): found["best"]} | settings
    if experiment.fraction:
        settings["scenario"] = "images"
    return settings


def flat(requests: list[list[str]]) -> list[str]:
    return [label for request in requests for label in request]


def slug(request: list[str]) -> str:
    name = "+".join(label.replace("/", "-") for label in request)
    return name if len(name) < 100 else f"{len(request)}-classes-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


class Subject:
    """The model and the images of an experiment, and what is looked at only once."""

    def __init__(self, experiment: Experiment, retrain: str, device: str | None):
        self.experiment, self.retrain_folder = experiment, retrain
        self.data = load_images(
            experiment.data, image_column=experiment.image_column, label_column=experiment.label_column
        )
        self.original = load_classifier(experiment.model, device=device)
        self.processor = load_processor(self.original)
        # What all rows depend on.
        self.fingerprint = [weights_sha256(self.original), images_sha256(self.data), reading_of(self.processor)]
        self._random: ModelFeatures | None = None

    def features(self, model: PreTrainedModel, name: str) -> ModelFeatures:
        """One pass over all images; where a row with another seed is of the same weights, that of this one."""
        folder = Path("build/features") / self.experiment.model.strip("/").replace("/", "-")
        return model_features(model.eval(), self.data, self.processor, batch_size=100, folder=folder, name=name)

    @property
    def random(self) -> ModelFeatures:
        if self._random is None:
            self._random = self.features(random_network(self.original), "random")
        return self._random

    def sets(self, request: list[str], so_far: list[str]) -> tuple[Any, Any, Forgotten]:
        """Images to forget, images of what nobody has asked for so far, and what `measure` calls the first."""
        train = self.data.train
        if self.experiment.fraction:
            rows = self.data.rows_to_forget(self.experiment.fraction)
            others = self.data.rows(rows, keep=False)
            return self.data.rows(rows), others, Forgotten([], rows=rows)
        labels = self.data.resolve(request, self.original.config)
        others = self.data.select(train, self.data.resolve(so_far, self.original.config), keep=False)
        return self.data.forget_set(labels), others, Forgotten(labels)

    def reference(self, name: str, request: list[str]) -> tuple[PreTrainedModel, dict[str, float]] | None:
        """The network, and the seconds that it was trained for; None of a Retrain that is not there."""
        if name == "original":
            return self.original, {}
        if name == "random":
            return random_network(self.original), {}
        what = slug(request) if request else "random"
        folder = Path(self.retrain_folder) / f"{self.experiment.model.split('/')[-1]}-{what}" / "final"
        if not self.retrain_folder or not folder.is_dir():
            return None
        log = json.loads((folder / "training.json").read_text())
        return load_classifier(str(folder), device=str(self.original.device)), {"seconds": log["seconds"]}

    def row(
        self, model: PreTrainedModel, label: str, so_far: list[str], seed: int, spent: dict[str, float]
    ) -> dict[str, Any]:
        """Everything that is measured of one model."""
        whose = label if label in ("original", "random") else f"{label}-{slug(so_far)}"
        features = self.features(model, whose.replace(" ", "-"))
        *_, forgotten = self.sets(so_far, so_far)
        result = measure(
            features, self.random, forgotten, probes=self.experiment.probes, seeds=(seed,), device=self.original.device
        )
        values = dataclasses.asdict(result)
        found: dict[str, Any] = {
            "seconds": spent.get("seconds"),
            "process_seconds": spent.get("process_seconds"),
            "accuracies": values["accuracies"],
            "retention": {probe: kept["mean"] for probe, kept in values["retention"].items()},
            "probes": {probe: kept["settings"] for probe, kept in values["retention"].items()},
            "membership": result.membership.accuracy if result.membership else None,
            "zrf": result.zrf.zrf if result.zrf else None,
        }
        details = self.experiment.details if seed == self.experiment.seeds[0] else []
        if "weights" in details:
            layers = weight_differences(model, self.original)
            found["weights"] = {layer.name: _rounded(layer.relative) for layer in layers}
        if "similarity" in details:
            both = [part.detach().float() for part in (features.test.features, features.test.labels)]
            matrix = class_similarity(both[0], both[1].long(), self.original.config.num_labels)
            found["similarity"] = [[round(value, 4) for value in line] for line in matrix.tolist()]
        return found


def _rounded(value: float | None) -> float | None:
    return value if value is None else float(f"{value:.4g}")


def key_of(subject: Subject, settings: dict[str, Any], more: list[Any]) -> str:
    """Of what a row depends on, but for the code and a reference's weights."""
    experiment = subject.experiment
    depends = [*subject.fingerprint, experiment.fraction, experiment.in_turn]
    depends += [experiment.probes, experiment.details, settings, *more]
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]


def chains(experiment: Experiment, method: dict[str, Any]) -> Iterator[tuple[int, list[list[str]]]]:
    """Seeds, and the requests that are made of one model in turn."""
    requests = method.get("requests", experiment.requests or [[]])
    for seed in method.get("seeds", experiment.seeds):
        if experiment.in_turn:
            yield seed, requests
        else:
            for request in requests:
                yield seed, [request]


def run_experiment(
    name: str, experiment: Experiment, arguments: Arguments, file: Path, tuning: Path, device: str | None = "cpu"
) -> None:
    """Run the rows that are not in the file yet."""
    subject = Subject(experiment, arguments.retrain, device)
    rows = read(file).get("rows", {})
    for method in experiment.methods:
        label = method.get("label", method["method"])
        if arguments.methods and not {label, method["method"]} & set(arguments.methods):
            continue
        try:
            settings = settings_of(method, experiment, tuning)
        except NotTunedError as error:
            print(f"{name} {label}: {error}", file=sys.stderr)
            continue
        again = {label, method["method"]} & set(arguments.again)
        for seed, requests in chains(experiment, method):
            if method["method"] in REFERENCES and experiment.in_turn:
                requests = [flat(requests)]
            steps = []
            for number in range(len(requests)):
                so_far = flat(requests[: number + 1])
                key = key_of(subject, settings, [method["method"], so_far, seed])
                steps.append((f"{label}/{slug(so_far) or 'random'}/seed={seed}", key, so_far))
            reference = subject.reference(method["method"], flat(requests)) if method["method"] in REFERENCES else None
            weights = weights_sha256(reference[0]) if reference else None
            if not again and all(
                rows.get(row, {}).get("key") == key
                and not rows[row].get("stale")
                and not any_stopped_early(rows[row].get("retention", ()), rows[row].get("probes", {}))
                and weights in (None, rows[row].get("weights_sha256"))
                for row, key, _ in steps
            ):
                continue
            model = subject.original
            for request, (row, key, so_far) in zip(requests, steps, strict=True):
                made: dict[str, Any] = {"label": label, "method": method["method"], "request": so_far, "seed": seed}
                made |= {"key": key, "settings": settings}
                if method["method"] in REFERENCES:
                    if reference is None:
                        print(f"{name} {row}: no reference; see --retrain", file=sys.stderr)
                        if row in rows:  # one of other images or settings than these is no reference of theirs
                            rows[row]["stale"] = rows[row]["key"] != key
                            write(file, read(file) | {"rows": rows})
                        continue
                    made |= {"weights_sha256": weights} | subject.row(reference[0], label, so_far, seed, reference[1])
                else:
                    forget_set, retain_set, _ = subject.sets(request, so_far)
                    try:
                        sets = (subject.data, forget_set, retain_set, subject.processor)
                        model, spent = forget(method["method"], model, *sets, settings, seed)
                        made |= subject.row(model, label, so_far, seed, spent)
                    except HfEscError as error:
                        made |= {"error": f"{type(error).__name__}: {error}"}
                made["setting"] = setting(1)
                rows = read(file).get("rows", {}) | {row: made}
                write(file, {"title": experiment.title, "experiment": dataclasses.asdict(experiment), "rows": rows})
                print(name, row, _short(made), file=sys.stderr, flush=True)
                if "error" in made:
                    break


def _short(row: dict[str, Any]) -> str:
    if "error" in row:
        return row["error"]
    head, converged = row["accuracies"], row["retention"]["converged"]
    shown = [head["forget_test"], head["retain_test"], converged["forget_test"], converged["retain_test"]]
    cells = " ".join("-" if value is None or math.isnan(value) else f"{value:.1f}" for value in shown)
    return f"{cells}, {row['seconds'] or 0:.1f} s"


def quick(experiment: Experiment) -> Experiment:
    methods = [
        {key: value for key, value in method.items() if key not in ("seeds", "requests")}
        for method in experiment.methods
        if method["method"] not in READS_RETAIN
    ]
    return dataclasses.replace(
        experiment, requests=experiment.requests[:1], seeds=experiment.seeds[:1], methods=methods
    )


def main() -> None:
    [arguments] = HfArgumentParser(Arguments).parse_args_into_dataclasses(_with_names(sys.argv[1:]))
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    there = {file.stem: file for file in sorted((HERE / "experiments").glob("*.json"))}
    names = arguments.experiments or (["table1-resnet"] if arguments.quick else list(there))
    if unknown := [name for name in names if name not in there]:
        raise SystemExit(f"There is no experiment {', '.join(unknown)}. There are: {', '.join(there)}.")
    default = Path("build/benchmarks") if arguments.quick else HERE / "results" / "experiments"
    start = time.perf_counter()
    for name in names:
        experiment = Experiment(**json.loads(there[name].read_text()))
        if arguments.quick:
            experiment = quick(experiment)
        folder = Path(arguments.output) if arguments.output else default
        run_experiment(
            name, experiment, arguments, folder / f"{name}.json", tuning_file(experiment.model, experiment.fraction)
        )
    print(f"{(time.perf_counter() - start) / 3600:.2f} hours", file=sys.stderr)


def _with_names(words: list[str]) -> list[str]:
    """Names of experiments without an option before them."""
    first = next((index for index, word in enumerate(words) if word.startswith("--")), len(words))
    return (["--experiments", *words[:first]] if first else []) + words[first:]


if __name__ == "__main__":
    main()
