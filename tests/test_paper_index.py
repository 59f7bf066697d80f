"""The settings on the page of papers are code that runs, and the defaults differ from them where it says so."""

import ast
import inspect
import re
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest

from hf_esc import ESCTTrainer, fisher_forgetting
from hf_esc.unlearning import METHODS

PAGE = (Path(__file__).parents[1] / "docs" / "paper_index.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## [^\n]+ \(`([\w-]+)`\)$(.+?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))


def test_every_method_is_on_it():
    assert set(SECTIONS) == {*METHODS, "fisher", "esc-t"}
    assert PAGE.count("\n## ") == len(SECTIONS)


@pytest.mark.parametrize("name", SECTIONS)
def test_the_reference_settings_are_the_defaults_but_for_what_is_said(name):
    [code] = re.findall(r"```python\n(.+?)```", SECTIONS[name], re.DOTALL)
    [said] = re.findall(r"^Defaults: the same(.*)\.$", SECTIONS[name], re.MULTILINE)
    differ = {setting: ast.literal_eval(value) for setting, value in re.findall(r"`(\w+)` \((.+?)\)", said)}
    assert said.count("`") == 2 * len(differ)
    made: dict = {}
    exec(code, made)
    if name == "fisher":
        forget = made["forget"]
        assert isinstance(forget, partial)
        assert forget.func is fisher_forgetting
        signature = inspect.signature(fisher_forgetting).parameters
        given, default = forget.keywords, {setting: signature[setting].default for setting in forget.keywords}
    else:
        kind = ESCTTrainer if name == "esc-t" else METHODS[name]
        arguments = made["arguments"]
        expected = ESCTTrainer.__annotations__["args"] if name == "esc-t" else kind.arguments.__name__
        assert type(arguments).__name__ == expected
        settings = [field.name for field in fields(arguments) if field.init]
        given, default = (
            {setting: getattr(made, setting) for setting in settings}
            for made in (arguments, type(arguments)(arguments.output_dir))
        )
    assert {setting: default[setting] for setting in given if given[setting] != default[setting]} == differ
