"""What a folder computes, by each way to load it, and what `hf-esc verify` says of it. Runs in `faults_child.py`."""

import contextlib
import hashlib
import io
import sys
import traceback
import warnings
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_esc.cli import main
from hf_esc.data.image_data import load_images
from hf_esc.errors import HfEscError
from hf_esc.evaluation.report import UnlearningReport
from hf_esc.loading import load_classifier, load_processor


def make_data(folder: Path, train: int, test: int) -> None:
    """`data/`, a folder of images to erase with, and `images.safetensors`, those that are looked at."""
    data = load_images("embedded")
    (folder / "data").mkdir(parents=True)
    data.train.select(range(train)).to_parquet(folder / "data" / "train.parquet")
    data.test.select(range(test)).to_parquet(folder / "data" / "test.parquet")
    rows = data.test.select(range(test, test + 400))
    labels = torch.tensor(rows["label"])
    # As many of the class as of all others together.
    chosen = [*torch.where(labels == 1)[0][:40].tolist(), *torch.where(labels != 1)[0][:40].tolist()]
    pixels = [
        torch.frombuffer(bytearray(rows[row]["image"].convert("L").tobytes()), dtype=torch.uint8) for row in chosen
    ]
    save_file({"pixels": torch.stack(pixels), "labels": labels[chosen]}, folder / "images.safetensors")


@cache
def _images(file: str):
    from PIL import Image

    found = load_file(file)
    images = [Image.frombytes("L", (28, 28), bytes(row.tolist())) for row in found["pixels"]]
    return images, found["labels"]


def _by_hf_esc(folder: str):
    model = load_classifier(folder, device="cpu")
    return model, load_processor(model)


def _by_auto(folder: str):
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    return model, AutoImageProcessor.from_pretrained(folder)


def look(folder: Path, images: str, forget: int) -> dict:
    """
    By `load_classifier` and by the Auto classes: the logits and label names, and how many images of the forgotten
    class and of the others are given it; or the error. Beside it, the exit code of `verify`, and what the evaluation
    says.
    """
    found = {"load": _try(_by_hf_esc, folder, images, forget), "auto": _try(_by_auto, folder, images, forget)}
    found["verify"] = _verify(folder)
    if (folder / "evaluation.json").exists():
        found["evaluation"] = _evaluation(folder / "evaluation.json")
    return found


@torch.no_grad()
def _try(way, folder: Path, images: str, forget: int) -> dict:
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            model, processor = way(str(folder))
        except Exception as error:
            return {"error": type(error).__name__, "typed": isinstance(error, HfEscError), "says": _first(error)}
        pictures, labels = _images(images)
        try:
            logits = model(**processor([p.convert("RGB") for p in pictures], return_tensors="pt")).logits
            names = {int(key): str(value) for key, value in model.config.id2label.items()}
            predicted = logits.argmax(1).tolist()
        except Exception as error:
            return {"fails": type(error).__name__, "says": _first(error)}
    gone = names.get(forget, "Trouser")
    given = [label == forget or names.get(label) in (gone, "Trouser") for label in predicted]
    of_class = [hit for hit, label in zip(given, labels.tolist(), strict=True) if label == forget]
    others = [hit for hit, label in zip(given, labels.tolist(), strict=True) if label != forget]
    return {
        "names": names,
        "logits": [[round(value, 4) for value in row] for row in logits.tolist()],
        "given": sum(of_class) / len(of_class),
        "given_others": sum(others) / len(others),
    }


def _verify(folder: Path) -> dict:
    sys.argv = ["hf-esc", "verify", str(folder)]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
            code: object = 0
        except SystemExit as ended:
            code = ended.code or 0
        except Exception as error:
            return {"code": 1, "raw": type(error).__name__, "says": traceback.format_exc()[-600:]}
    said = [line for line in out.getvalue().splitlines() if line.startswith("MISMATCH")] or err.getvalue().splitlines()
    return {"code": code, "says": (said or [""])[-1][:200]}


def _evaluation(file: Path) -> dict:
    try:
        report = UnlearningReport.from_json(file.read_text(encoding="utf-8"))
    except Exception as error:
        typed = isinstance(error, HfEscError | OSError | UnicodeDecodeError)  # the command says the last two itself
        return {"error": type(error).__name__, "typed": typed, "says": _first(error)}
    return {"says": hashlib.sha256(report.to_json().encode()).hexdigest()[:16]}


def _first(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:200]
