"""Tiny erased models, their reports, and processes of the real client that push them to the stand-in Hub."""

import os
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_esc.evaluation.report import UnlearningReport

from . import test_card
from .hub import Repo
from .pictures import NAMES
from .processes import forks
from .tiny import batches, images, quietly

ROOT = Path(__file__).parents[1]

# What the snippets need. None of it asks anything of the Hub when it is imported.
IMPORTS = """
import warnings
import evaluate, matplotlib.figure, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
import hf_esc.cli, hf_esc.hub.push, hf_esc.hub.space, hf_esc.loading, hf_esc.hub.verification
import hf_esc.evaluation.report
import hf_esc.visualization.retention, hf_esc.cli.report
from hf_esc import ESCModel, erase
from hf_esc.errors import HfEscError, HubError
from hf_esc.evaluation.report import UnlearningReport
from tests.tiny import batches, images, quietly

def command(*arguments):
    sys.argv = ["hf-esc", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            hf_esc.cli.main()
        except SystemExit as ended:
            return [ended.code or 0, out.getvalue(), err.getvalue()]

def refused(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except HubError as error:
        return str(error)
"""


@contextmanager
def clients(hub, home: Path):
    """
    A function that runs a snippet in a fresh process whose Hub is `hub`, and returns the `answer` that it sets.

    Its names are those of `IMPORTS`, with values given by keyword.
    """
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = hub.environment(home / "hub", PYTHONPATH=path, HF_HUB_DISABLE_PROGRESS_BARS="1")
    with forks(IMPORTS, home, environment) as run:
        yield lambda code, /, **values: run(code, **values)["answer"]


def tiny_vit(names=NAMES, seed=0) -> ViTForImageClassification:
    """A random ViT (d = 8) with its image processor."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        config = ViTConfig(**sizes, image_size=16, patch_size=8, id2label=dict(enumerate(names)))
        model = ViTForImageClassification(config).eval()
    model.image_processor = ViTImageProcessor(size={"height": 16, "width": 16})
    return model


def forget_set(label: int = 1):
    """Batches of a class; random pictures."""
    return [{**batch, "labels": torch.full((16,), label)} for batch in batches(images(16))]


def knows(model: ViTForImageClassification, label: int) -> ViTForImageClassification:
    """The model with a head that gives the label to the pictures of `forget_set`, by what one direction can erase."""
    with torch.no_grad():
        features = torch.cat([model.vit(batch["pixel_values"])[0][:, 0] for batch in forget_set(label)])
        model.classifier.weight[label] = 10 * features.mean(0)
        model.classifier.bias[label] = -10
    return model


def erased_vit(label: int = 1, names=NAMES, **options):
    model = knows(tiny_vit(names), label)
    erased = quietly(model, forget_set(label), **{"rank": 1} | options)
    erased.image_processor = model.image_processor
    return erased


def report_of(model, **changes) -> UnlearningReport:
    last = model.config.erasures[-1]
    subject = {"projection_sha256": last["projection_sha256"], "weights_sha256": last["base_sha256"]}
    subject |= {"method": [record["method"] for record in model.config.erasures], "left_out": []}
    return test_card.report(**subject | changes)


def put(hub, repo_id: str, folder: Path | None = None, **files: str) -> Repo:
    """A repository with the files of a folder, and others."""
    hub.repos["model", repo_id] = repo = Repo(repo_id)
    held = {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder is not None else {}
    repo.commit(
        "main", "by hand", {".gitattributes": b"", **held, **{name: text.encode() for name, text in files.items()}}
    )
    return repo
