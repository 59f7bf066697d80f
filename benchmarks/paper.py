"""
Table 1 of the ESC paper on the paper's own data and networks, for who has a network and a GPU.

    make paper-table1
    python benchmarks/paper.py benchmarks/paper/cifar10-all-cnn.json

Each setting trains the original and the Retrain reference, tunes every method (`tune.py`), runs the experiment
(`run.py`), and prints its table with the paper's own figures beside it. Everything goes to `build/paper/NAME`; each
part that is there is not made again, so a run that was cut off goes on.

The recipes of the original are this project's, as the paper names only data, networks and starts: an original that is
better or worse than the paper's moves every number after it.
"""

import dataclasses
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Image
from report_unlearning import READS_RETAIN, SIX, SIX_TITLES, average, head, labels_of, probe, table
from results import read
from run import Arguments, Experiment, run_experiment, slug
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    HfArgumentParser,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    ViTImageProcessor,
)
from tune import of_classes, tune

from hf_esc.all_cnn import AllCNNConfig, AllCNNForImageClassification
from hf_esc.data import ImageData, load_images
from hf_esc.data.batches import ImageCollator, NumberedRows
from hf_esc.loading import load_classifier

PAPER = Path(__file__).parent / "paper"
FORGET_ONLY = ("delete", "neg-grad", "random-label", "boundary-shrink", "lau")
WITH_RETAIN = ("finetune", "l1-sparse", "scrub", "salun", "neg-grad-plus", "bad-teacher")


@dataclass
class Setting:
    """
    Args:
        title: Data and network.
        data: An id on the Hub, or a folder.
        forget: The classes of the request, by name or number.
        start: The checkpoint that the original starts from; an All-CNN of half width with random weights where None.
        training: Arguments of the original's training, of `transformers.TrainingArguments`.
        image_column, label_column: Columns of the data, where they are not clear.
        seeds: Of each method.
        without: Methods that are left out.
        reported: The paper's own figures, by method: six accuracies, MIA, and six of KR, in its order.
    """

    title: str
    data: str
    forget: list[str]
    start: str | None = None
    training: dict[str, Any] = field(default_factory=dict)
    image_column: str | None = None
    label_column: str | None = None
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    without: list[str] = field(default_factory=list)
    reported: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class Options:
    settings: list[str] = field(default_factory=list, metadata={"help": "Files of settings; all by default."})
    output: str = field(default="build/paper", metadata={"help": "Where everything goes."})
    device: str | None = field(default=None, metadata={"help": "An accelerator where there is one by default."})


class Pictures(torch.utils.data.Dataset):
    """Training images, mirrored by chance."""

    def __init__(self, data: ImageData, split: Any, processor: Any, labels: list[int]):
        rows = split.with_format(None).select_columns([data.image_column, data.label_column])
        self.rows = NumberedRows(rows.cast_column(data.image_column, Image(decode=False)))
        self.labels = torch.tensor(labels)
        self.collate = ImageCollator(processor, data.image_column, data.label_column, "RGB")
        self.count = len(rows)

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, wanted: list[int]) -> dict[str, torch.Tensor]:
        batch = self.collate(self.rows.__getitems__(wanted))
        mirrored = torch.rand(len(wanted), 1, 1, 1) < 0.5
        pixels = batch["pixel_values"]
        pixels = torch.where(mirrored, pixels.flip(3), pixels)
        return {"pixel_values": pixels, "labels": self.labels[batch["labels"]]}


def start_of(setting: Setting, data: ImageData) -> tuple[PreTrainedModel, Any]:
    """The network before its training, with its image processor."""
    names = data.label_names or [str(label) for label in range(data.num_labels)]
    id2label = dict(enumerate(names))
    label2id = {name: label for label, name in id2label.items()}
    transformers.set_seed(0)
    if setting.start is None:
        processor = ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.25] * 3)
        return AllCNNForImageClassification(AllCNNConfig(id2label=id2label, label2id=label2id)), processor
    model = AutoModelForImageClassification.from_pretrained(
        setting.start, id2label=id2label, label2id=label2id, ignore_mismatched_sizes=True
    )
    return model, AutoImageProcessor.from_pretrained(setting.start)


def train(setting: Setting, data: ImageData, rows: Any, folder: Path, device: str | None) -> Path:
    """The network after its training on these rows, and a log of it."""
    if (folder / "training.json").is_file():
        before = json.loads((folder / "training.json").read_text())["settings"]
        if any(before[name] != getattr(setting, name) for name in ("data", "start", "training")):
            raise SystemExit(f"{folder} was trained with other settings. Remove it, or name another `--output`.")
        return folder
    model, processor = start_of(setting, data)
    checkpoints = folder.with_name(folder.name + "-checkpoints")
    args = TrainingArguments(
        str(checkpoints),
        **{
            "save_strategy": "epoch",
            "save_total_limit": 1,
            "report_to": [],
            "seed": 0,
            "use_cpu": device == "cpu",
            "remove_unused_columns": False,
            **setting.training,
        },
    )
    pictures = Pictures(data, rows, processor, data.labels_in(model.config))
    trainer = Trainer(model, args, train_dataset=pictures, data_collator=lambda batch: batch)
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=any(checkpoints.glob("checkpoint-*")))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    log = {"seconds": time.perf_counter() - start, "images": len(rows), "settings": dataclasses.asdict(setting)}
    (folder / "training.json").write_text(json.dumps(log, indent=1) + "\n")
    return folder


def run_setting(name: str, setting: Setting, output: Path, device: str | None = None) -> str:
    """All of one setting, and its table."""
    data = load_images(setting.data, image_column=setting.image_column, label_column=setting.label_column)
    if data.test is None:
        raise SystemExit(f"{setting.data} has no test split.")
    folder = output / name
    original = train(setting, data, data.train, folder / name, device)
    model = load_classifier(str(original), device=device)
    labels = data.resolve(setting.forget, model.config)
    retain = data.select(data.train, labels, keep=False)
    train(setting, data, retain, folder / "retrain" / f"{name}-{slug(setting.forget)}" / "final", device)
    methods = [method for method in (*FORGET_ONLY, *WITH_RETAIN) if method not in setting.without]
    tune(model, data, of_classes(model, data, setting.forget), methods, folder / "tuning.json")
    experiment = Experiment(
        title=setting.title,
        model=str(original),
        data=setting.data,
        image_column=setting.image_column,
        label_column=setting.label_column,
        requests=[setting.forget],
        seeds=setting.seeds,
        methods=[{"method": name} for name in ("original", "retrain", "random", "esc", "esc-t", "remap")]
        + [{"method": name, "tuned": True} for name in methods],
    )
    arguments = Arguments(retrain=str(folder / "retrain"))
    run_experiment(name, experiment, arguments, folder / "results.json", folder / "tuning.json", device)
    return beside_the_paper(list(read(folder / "results.json")["rows"].values()), setting.reported)


def beside_the_paper(rows: list[dict[str, Any]], reported: dict[str, list[float]]) -> str:
    """Each number measured here, and the paper's in brackets where it has one."""
    picks = [*(head(key) for key in SIX), lambda row: row["membership"], *(probe("paper", key) for key in SIX)]
    lines = []
    for label in labels_of(rows):
        own = [row for row in rows if row["label"] == label]
        theirs = reported.get(label, [])
        cells = [
            average(own, pick, 2) + (f" ({theirs[number]:.2f})" if number < len(theirs) else "")
            for number, pick in enumerate(picks)
        ]
        converged = [average(own, probe("converged", key), 2) for key in ("forget_test", "retain_test", "hm_test")]
        lines.append([label, "f + r" if label in READS_RETAIN else "f", *cells, *converged])
    titles = [*SIX_TITLES, "MIA", *(f"KR {title}" for title in SIX_TITLES)]
    converged_titles = [f"KR converged {title}" for title in ("D_ft", "D_rt", "HM_t")]
    return table(["method", "images", *titles, *converged_titles], lines)


def main() -> None:
    [options] = HfArgumentParser(Options).parse_args_into_dataclasses(_with_files(sys.argv[1:]))
    files = [Path(file) for file in options.settings] or sorted(PAPER.glob("*.json"))
    for file in files:
        if not file.is_file():
            raise SystemExit(f"There is no {file}.")
        setting = Setting(**json.loads(file.read_text()))
        print(f"\n{setting.title}: measured here (the paper's figure)\n")
        print(run_setting(file.stem, setting, Path(options.output), options.device))


def _with_files(words: list[str]) -> list[str]:
    first = next((index for index, word in enumerate(words) if word.startswith("--")), len(words))
    return (["--settings", *words[:first]] if first else []) + words[first:]


if __name__ == "__main__":
    main()
