"""Every method has an entry in the paper index, whose code runs with the settings that the table of methods names."""

import inspect
import re
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest

from hf_esc.methods import METHODS

PAGE = (Path(__file__).parents[1] / "docs" / "paper_index.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## [^\n]+ \(`([\w-]+)`\)$(.+?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))


def test_every_method_is_on_it():
    assert set(SECTIONS) == set(METHODS)


# Where the authors' code differs from their text, or this implementation from their code.
DEVIATIONS = {
    "delete": ("1e-4", "5e-5"),
    "salun": ("redraw=True", "256", "5e-4", "over the forget images first"),
    "scrub": ("weight decay of 5e-4",),
    "fisher": ("1e3", "ten times the noise", "rows"),
    "boundary-shrink": ("8 bits",),
    "bad-teacher": (r"\(C T^2\) times",),
}


@pytest.mark.parametrize("name", DEVIATIONS)
def test_what_differs_from_published_code_is_said(name):
    assert all(words in SECTIONS[name] for words in DEVIATIONS[name])


@pytest.mark.parametrize("name", METHODS)
def test_the_code_runs_with_the_settings_of_the_table_and_the_defaults_differ_from_them_where_it_says_so(name):
    row = METHODS[name]
    [code] = re.findall(r"```python\n(.+?)```", SECTIONS[name], re.DOTALL)
    [said] = re.findall(r"^Defaults: the same(.*)\.$", SECTIONS[name], re.MULTILINE)
    made: dict = {}
    exec(code, made)
    if row.trained:
        arguments = made["arguments"]
        assert type(arguments) is row.load_arguments()
        settings = [field.name for field in fields(arguments) if field.init]
        given, default = (
            {setting: getattr(made, setting) for setting in settings}
            for made in (arguments, type(arguments)(arguments.output_dir))
        )
        assert {setting: given[setting] for setting in row.settings} == row.settings
    else:
        forget = made["forget"]
        assert isinstance(forget, partial)
        assert (forget.func, forget.keywords) == (row.load(), row.settings)
        signature = inspect.signature(row.load()).parameters
        given, default = forget.keywords, {setting: signature[setting].default for setting in forget.keywords}
    differ = {setting: default[setting] for setting in given if given[setting] != default[setting]}
    assert set(re.findall(r"`(\w+)` \((.+?)\)", said)) == {(name, repr(value)) for name, value in differ.items()}
