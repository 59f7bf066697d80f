"""Text of others reaches a terminal as one line that can be printed, and acts on nothing."""

import dataclasses
import re
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import hf_esc as package
from hf_esc.cli import _say
from hf_esc.errors import HfEscError, LabelError, OutputError, SiteError, shown, warn
from hf_esc.evaluation.report_text import table

from . import test_card
from .pictures import labelled
from .pushing import erased_vit

OSC = "\x1b]0;owned\x07"  # sets the title of a window
NAMES = [f"cat{OSC}", "dog\nMISMATCH    weights: forged", "bi\u202erd", "fi\u200fsh\x9b2J"]


def acting(text: str) -> list[str]:
    """The lines of a text, but for progress bars, that hold what no terminal should get."""
    lines = [line for part in text.split("\n") for line in part.split("\r") if "it/s" not in line]
    return [line for line in lines if not line.isprintable() or line.startswith("MISMATCH    weights: forged")]


hostile = st.text(st.characters() | st.sampled_from("\x1b\x07\x9b\n\r\t\u202e\u2066\u200f\u2028\ud800\x7f"))


@given(hostile)
@example(OSC)
def test_what_is_shown_is_one_line_of_printable_text(text):
    found = shown(text)
    assert found.isprintable()
    found.encode()  # no half of a surrogate pair
    assert shown(found) == found
    if text.isprintable():
        assert found == text


@given(hostile)
def test_the_text_of_an_error_and_of_a_warning_is_shown(text):
    for kind in (HfEscError, LabelError, SiteError, OutputError):
        assert str(kind(text)) == shown(text)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn(text)
    assert str(caught[0].message) == shown(text)


@pytest.mark.parametrize("category", [UserWarning, FutureWarning])
def test_a_warning_of_another_library_is_shown(category, capsys, monkeypatch):
    monkeypatch.setattr("hf_esc.cli._as_python_does", lambda message, *_: sys.stderr.write(f"{message}\n"))
    _say(f"cat{OSC}\nMISMATCH    weights: forged", category, "a_file.py", 1)
    assert not acting(capsys.readouterr().err)


def test_the_command_line_has_one_way_to_the_terminal():
    for file in (Path(package.__file__).parent / "cli").glob("*.py"):
        text = file.read_text(encoding="utf-8")
        ways = re.findall(r"\b(?:typer\.s?echo|print|sys\.std\w+\.write|secho)\(", text)
        assert ways == (["typer.echo("] if file.name == "terminal.py" else []), file
        assert all("shown(" in call for call in re.findall(r"tqdm\.write\([^\n]*", text)), file


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An erased model whose classes are called what they should not, with images of the same."""
    folder = tmp_path_factory.mktemp("hostile")
    erased_vit(names=NAMES).save_pretrained(folder / "model")
    (folder / "data").mkdir()
    for split in ("train", "test"):
        labelled([0, 1, 2, 3] * 2, NAMES).to_parquet(folder / "data" / f"{split}.parquet")
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ["verify", "MODEL"],
        ["evaluate", "MODEL", "--dataset", "DATA", "--probes", "none"],
        ["erase", "MODEL", "--dataset", "DATA", "--forget", "#2", "--output", "OUT", "--rank", "1"],
        ["erase", "MODEL", "--dataset", "DATA", "--forget", f"ca{OSC}", "--output", "OUT"],
    ],
    ids=["verify", "evaluate", "erase", "erase what is not there"],
)
def test_no_name_of_a_class_acts_on_the_terminal(hf_esc, folder, tmp_path, words):
    places = {"MODEL": str(folder / "model"), "DATA": str(folder / "data"), "OUT": str(tmp_path / "out")}
    _, out, err = hf_esc(*(places.get(word, word) for word in words))
    assert "Traceback" not in err
    assert not acting(out + err)


def test_no_name_in_a_report_acts_on_the_terminal():
    models = test_card.report().models
    made = dataclasses.replace(
        test_card.report(),
        models=models | {NAMES[0]: models["model"]},
        forget=NAMES[:2],
        forget_labels=[0, 1],
        gates=[test_card.gate([0, 1], 2.5)],
    )
    assert not acting(table(made))
