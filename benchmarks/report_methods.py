"""What the documentation says of every method, from the table of methods: nobody writes it twice."""

import inspect
import json
from dataclasses import fields
from typing import Any

from hf_esc.methods import METHODS, Method

_WIDTH = 100


def weights_table() -> str:
    """The guide's table of methods that edit weights."""
    lines = ["| `--method` | images that it looks at | what it does |", "| --- | --- | --- |"]
    for method in METHODS.values():
        if method.edits_weights:
            lines.append(f"| `{method.name}` | {', '.join(method.images)} | {method.summary} |")
    return "\n".join(lines)


def promises_table() -> str:
    """What each method promises, and to whom."""
    lines = ["| method | `--method` | stands | a complete erasure promises |", "| --- | --- | --- | --- |"]
    for method in METHODS.values():
        where = "in the weights" if method.edits_weights else "in front of the head"
        lines.append(f"| {method.title} | `{method.name}` | {where} | {method.promise} |")
    return "\n".join(lines)


def source(method: Method) -> str:
    """Where a method is from, and which images it needs."""
    images = " and ".join(method.images)
    if method.images == ("retain",):
        images += "; the forget images are looked at and not trained on"
    return f"**Source**: {method.source}. **Data**: {images}."


def settings(method: Method) -> str:
    """The reference settings as code, and the defaults that differ from them."""
    given = [f"{name}={_literal(value)}" for name, value in method.settings.items()]
    if method.trained:
        [module, name] = str(method.arguments).split(":")
        face = "hf_esc.unlearning" if module.startswith("unlearning.") else "hf_esc"
        lines = [f"from {face} import {name}", "", *_call("arguments = ", name, ['"output"', *given])]
    else:
        [module, name] = method.where.split(":")
        face = "hf_esc.unlearning" if module.startswith("unlearning.") else "hf_esc"
        sets = "forget_set, retain_set" if method.uses_retain else "forget_set"
        lines = ["from functools import partial", "", f"from {face} import {name}", ""]
        lines += _call("forget = ", "partial", [name, *given])
        lines[-1] += f"  # forget(model, {sets})"
    differ = [
        f"`{name}` ({_default(method, name)!r})"
        for name, value in method.settings.items()
        if _default(method, name) != value
    ]
    but = f" but for {' and '.join(differ)}" if differ else ""
    return "\n".join(["```python", *lines, "```", "", f"Defaults: the same{but}."])


def _literal(value: Any) -> str:
    """A setting as code, with the double quotes that `ruff format` puts in code blocks of Markdown too."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _call(before: str, name: str, values: list[str]) -> list[str]:
    line = f"{before}{name}({', '.join(values)})"
    if len(line) <= _WIDTH:
        return [line]
    return [f"{before}{name}(", *(f"    {value}," for value in values), ")"]


def _default(method: Method, name: str) -> Any:
    if not method.trained:
        return inspect.signature(method.load()).parameters[name].default
    kind = method.load_arguments()
    assert name in {field.name for field in fields(kind)}, f"{kind.__name__} has no {name}."
    return getattr(kind("output"), name)


BLOCKS = {
    "methods-weights": weights_table,
    "methods-promises": promises_table,
    **{f"source-{name}": (lambda method=method: source(method)) for name, method in METHODS.items()},
    **{f"settings-{name}": (lambda method=method: settings(method)) for name, method in METHODS.items()},
}
