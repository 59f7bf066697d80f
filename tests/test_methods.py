"""The table of methods is true, nothing else lists methods, and a new one is a file and a row."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hf_esc
from hf_esc import unlearning
from hf_esc.errors import CheckpointError
from hf_esc.ledger.record import edits_weights
from hf_esc.methods import IN_FRONT, KINDS, METHODS, WEIGHTS, kind_of

from .processes import COMMAND

PACKAGE = Path(hf_esc.__file__).parent
TOY = '''
"""Toy: the head's bias of the forgotten class goes down, step by step."""

from dataclasses import dataclass, field

from .trainer import UnlearningTrainer
from .training_args import UnlearningArguments


@dataclass
class ToyArguments(UnlearningArguments):
    """Reference settings: one epoch, learning rate 1."""

    learning_rate: float = field(default=1.0, metadata={"help": "The learning rate."})
    num_train_epochs: float = field(default=1, metadata={"help": "Passes over the forget set."})
    pressure: float = field(default=1.0, metadata={"help": "Weight of the only term."})


class ToyTrainer(UnlearningTrainer):
    """L = pressure * f(x)_y, on forget images."""

    method = "toy"
    arguments = ToyArguments

    def unlearning_loss(self, model, forget, retain):
        logits = self.logits(model, forget)
        return self.args.pressure * logits.gather(1, forget["labels"][:, None].to(logits.device)).mean()
'''
ROW = """    Method(
        "toy",
        "Toy Method",
        WEIGHTS,
        "unlearning.toy:ToyTrainer",
        "unlearning.toy:ToyArguments",
        ("forget",),
        "pushes the logit of the forgotten class down",
        _EDITED,
        "a test",
        settings={"pressure": 1.0},
    ),
"""
# A closed form in front of the head, in a room of its own kind.
TOY_FRONT = '''
"""Toy in front: ESC by another name."""

from ..ledger.fingerprints import sealed
from .esc import erase


def toy_front(model, forget_set, *, processing_class=None, image_column=None, label_column=None, batch_size: int = 32):
    """ESC of rank 2, whose record says the toy's name."""
    columns = {"image_column": image_column, "label_column": label_column, "batch_size": batch_size}
    erased = erase(model, forget_set, rank=2, processing_class=processing_class, **columns)
    erased.config.erasures[-1]["method"] = "toy-front"
    erased.config.erasures = sealed(erased.config.erasures)
    return erased
'''
ROW_FRONT = """    Method(
        "toy-front",
        "Toy In Front",
        IN_FRONT,
        "erasure.toy_front:toy_front",
        None,
        ("forget",),
        "is ESC by another name",
        _LINEAR,
        "a test",
    ),
"""
LIBRARY = """
sys.path.insert(0, root)
import json
import hf_esc
from hf_esc import load_classifier, load_images
from hf_esc.hub.card import card_text
from hf_esc.unlearning import METHODS, ToyArguments, ToyTrainer
model, data = load_classifier("embedded/resnet", device="cpu"), load_images(dataset)
quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True}
args = ToyArguments("run", max_steps=2, per_device_train_batch_size=8, **quiet)
trainer = ToyTrainer(model, args, data.forget_set([1]))
trainer.train()
record = trainer.model.config.erasures[-1]
print("library", json.dumps([METHODS["toy"].__name__, record["method"], record["kind"], record["pressure"]]))
for folder in folders:
    print(card_text(load_classifier(folder, device="cpu").config))
"""


@pytest.mark.parametrize("name", METHODS)
def test_a_row_says_what_is_so(name):
    row = METHODS[name]
    assert row.name == name
    assert row.kind in KINDS
    assert row.images in (("forget",), ("retain",), ("forget", "retain"))
    found = row.load()
    face = unlearning if row.edits_weights else hf_esc
    assert all(getattr(face, public) is not None for public in row.public)
    assert getattr(face, row.where.partition(":")[2]) is found
    if row.trained and row.edits_weights:
        assert found.method == name
        assert found.arguments is row.load_arguments()
        used = [side for side, uses in (("forget", found.uses_forget), ("retain", found.uses_retain)) if uses]
        assert tuple(used) == row.images


def test_the_table_is_light():
    code = (
        "import sys, hf_esc.methods; print(sorted({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", METHODS)
def test_a_record_of_a_version_before_kinds_has_that_of_its_method(name):
    assert kind_of({"method": name}) == METHODS[name].kind


def test_an_unknown_name_of_a_known_kind_is_no_error_and_an_unknown_kind_is():
    for kind in KINDS:
        assert kind_of({"method": "of-tomorrow", "kind": kind}) == kind
    for record in ({"method": "of-tomorrow"}, {"method": "esc", "kind": "magic"}, {"method": "esc", "kind": None}, {}):
        with pytest.raises(CheckpointError, match="does not know"):
            edits_weights(record)
    assert not edits_weights({"method": "of-tomorrow", "kind": IN_FRONT})
    assert edits_weights({"method": "esc", "kind": WEIGHTS})  # the record's word, and not the table's


def test_no_other_file_of_the_package_lists_methods():
    """
    A file may speak of its own method, or of one that it treats apart; more names in one file are a list. (The card
    says "esc", "finetune" and "retrain" of other things than methods.)
    """
    for file in PACKAGE.rglob("*.py"):
        if file.name == "methods.py" and file.parent == PACKAGE:
            continue
        code = re.sub(r'"""(.|\n)*?"""|#[^\n]*', "", file.read_text(encoding="utf-8"))
        named = {name for name in METHODS if f'"{name}"' in code}
        assert len(named) <= 3, (file, named)


@pytest.fixture(scope="module")
def with_toys(tmp_path_factory) -> Path:
    """A copy of the package to which two methods were added as CONTRIBUTING says: a file and a row each."""
    root = tmp_path_factory.mktemp("toys")
    package = root / "hf_esc"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "embedded"))
    (package / "embedded").symlink_to(PACKAGE / "embedded")
    (root / "metrics").symlink_to(PACKAGE.parent / "metrics")
    (package / "unlearning" / "toy.py").write_text(TOY)
    (package / "erasure" / "toy_front.py").write_text(TOY_FRONT)
    table = package / "methods.py"
    text = table.read_text(encoding="utf-8")
    assert text.count("\n)\nMETHODS:") == 1
    table.write_text(text.replace("\n)\nMETHODS:", f"\n{ROW}{ROW_FRONT})\nMETHODS:"), encoding="utf-8")
    return root


def test_a_method_is_added_by_its_file_and_its_row(with_toys, clothes, elsewhere, tmp_path):
    # Each command and each program is a process of its own that has imported no method yet.
    def run(*arguments: str) -> str:
        done = elsewhere(COMMAND, tmp_path, root=with_toys, arguments=[*map(str, arguments)])
        assert Path(done["answer"]).is_relative_to(with_toys)
        return done["printed"]

    common = ("--dataset", clothes, "--forget", "Trouser", "--no-evaluate", "--json")
    settings = {"toy": ("--max-steps", "2", "--pressure", "2", "--per-device-train-batch-size", "8"), "toy-front": ()}
    for name, further in settings.items():
        made = run("erase", "embedded/resnet", "--method", name, "--output", name, *common, *further)
        assert json.loads(made)["method"] == name
        checks = json.loads(run("verify", name, "--json"))
        assert checks["passed"]
    assert "toy-front" in run("erase", "--help")
    said = elsewhere(LIBRARY, tmp_path, root=with_toys, dataset=clothes, folders=[*settings])["printed"]
    [line] = [line for line in said.splitlines() if line.startswith("library ")]
    assert json.loads(line.removeprefix("library ")) == ["ToyTrainer", "toy", WEIGHTS, 1.0]
    assert "Toy Method" in said
    assert "pressure 2.0" in said
    assert "Toy In Front" in said
    data = ("--model", "embedded/resnet", "--dataset", clothes, "--forget", "Trouser", "--evaluate", "False")
    training = ("--output_dir", "trained", "--max_steps", "2", "--use_cpu")
    assert "toy, 2 steps on them" in run("train", "--method", "toy", *data, *training)
