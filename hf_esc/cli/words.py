"""Split a command line between typer and the parser of the training arguments."""

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from typer.core import TyperCommand

from ..errors import OptionError
from ..methods import METHODS


class Command(TyperCommand):
    """A command that says where quotes are missing."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = list(args)  # the parser empties it
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # the class is typer's or click's, by its version
            found = re.search(r"unexpected extra arguments?(?:\(s\))? \((.*)\)", str(error))
            if found is None:
                raise
            extra = found[1].split()
            raise OptionError(f"What is {' '.join(extra)!r}?{_quoted(words, extra)}") from error


def _quoted(words: list[str], extra: list[str]) -> str:
    """The option whose value would take the extra words if it was in quotes, written so."""
    for option, value, following in zip(words, words[1:], words[2:], strict=False):
        if option.startswith("--") and following in extra and not value.startswith("--"):
            rest = words[words.index(option) + 1 :]
            whole = " ".join(takewhile(lambda word: not word.startswith("-"), rest))
            return f" If it belongs to {option}, put that into quotes: {option} {whole!r}."
    return " Names with spaces need quotes."


class EraseCommand(Command):
    """A command that also takes the arguments of a training, each with its value, if `--method` edits the weights."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own: list[str] = args
        further: list[str] = []
        method = METHODS.get(value_of("method", args) or "")
        if method is not None and method.edits_weights:
            known = {name for param in self.params for name in (*param.opts, *param.secondary_opts)}
            own, further = _parted(args, {*known, *ctx.help_option_names})
        super().parse_args(ctx, own)
        ctx.args = further
        return further


def _parted(words: list[str], known: set[str]) -> tuple[list[str], list[str]]:
    """The words of known options and arguments, and those of all other options with their values."""
    own, further, left = [], [], list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("--") or word.split("=", 1)[0] in known:
            own.append(word)
            continue
        further.append(word)
        if "=" not in word and left and not re.match(r"-(?![\d.])", left[0]):
            further.append(left.pop(0))
    return own, further


def value_of(name: str, words: Sequence[str]) -> str | None:
    """The value of an option in a command line, the last one where there are several, None where there is none."""
    found = None
    for word, following in zip(words, [*words[1:], ""], strict=False):
        option, equals, value = word.partition("=")
        if option.replace("-", "_") == f"__{name}":
            found = value if equals else following
    return found
