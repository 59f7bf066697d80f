"""Trainings from the command line: the arguments of a method, and its Trainer. Commands import it when they run."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import field, make_dataclass
from typing import Any, NoReturn, get_type_hints

from transformers import HfArgumentParser

from ..errors import ModelError, OptionError
from ..methods import Method
from .progress import progress_on_stderr
from .request import Request


class _Parser(HfArgumentParser):
    """A parser whose errors are ours, without two pages of usage."""

    def error(self, message: str) -> NoReturn:
        raise OptionError(message[:1].upper() + message[1:])


def settings_of(function: Callable[..., Any], *, without: Collection[str]) -> type:
    """What a function takes by name beside `without`, as a dataclass that a command line is parsed into."""
    taken = [
        (parameter.name, hints.get(parameter.name, Any), field(default=parameter.default))
        for hints in [get_type_hints(function)]
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in without
    ]
    return make_dataclass(f"{function.__name__}_settings", taken)


def parsed(
    kinds: Sequence[Any], words: Sequence[str], *, method: str, others: Iterable[str] = (), **described: Any
) -> tuple[Any, ...]:
    """
    Words of a command line as dataclasses. `--learning-rate` is `--learning_rate`.

    Args:
        kinds (`Sequence[type]`): The dataclasses.
        words (`Sequence[str]`): `--name value`; the last one of a name counts.
        method (`str`): For errors.
        others (`Iterable[str]`): Further options that there are, which a wrong one could have meant.
        described: `prog` and `description`, for the help.

    Raises:
        OptionError: If there is no such argument, with near ones, or a value does not fit.
    """
    if "scenario" in given(words):
        raise OptionError("`--scenario` follows from what is to be forgotten, classes or images. Leave it out.")
    parser = _Parser(list(kinds), allow_abbrev=False, **described)
    try:
        *found, rest = parser.parse_args_into_dataclasses(
            list(words), return_remaining_strings=True, look_for_args_file=False
        )
    except OptionError:
        raise
    except ValueError as error:  # of transformers
        raise OptionError(str(error)) from error
    if rest:
        there_are = {*parser._option_string_actions, *others}
        raise OptionError(
            " ".join(_unknown(word, there_are, method) for word in rest if word.startswith("--"))
            or f"What is {' '.join(rest)!r}? There is no option before it that takes it."
        )
    return tuple(found)


def _unknown(word: str, there_are: Iterable[str], method: str) -> str:
    name = word.split("=", 1)[0]
    # In the spelling of the user.
    alike = sorted({option.replace(*("-", "_") if "_" in name else ("_", "-")) for option in there_are})
    near = difflib.get_close_matches(name.strip("-"), [option.strip("-_") for option in alike], n=3)
    return f"No such option of `--method {method}`: {name}." + (
        f" Near it: {', '.join(f'--{option}' for option in near)}." if near else ""
    )


def given(words: Sequence[str]) -> set[str]:
    """The names of the arguments in a command line."""
    return {word[2:].split("=", 1)[0].replace("-", "_") for word in words if word.startswith("--")}


def as_words(settings: dict[str, Any]) -> list[str]:
    """Settings, without those that are None, as words of a command line."""
    return [word for name, value in settings.items() if value is not None for word in (f"--{name}", str(value))]


def check_device(device: str | None) -> None:
    """Raise a [`ModelError`] where a training would not run on this device."""
    number = (device or "").partition(":")[2]  # what is no device at all, loading the model says
    if number not in ("", "0"):
        raise ModelError(f"Training runs on the first device that is visible, not on {device!r}. Hide the others.")


def make_trainer(
    method: Method, original: Any, args: Any, request: Request, retain: Any, processor: Any, *, logs: bool
) -> Any:
    """
    The Trainer of a method, with its progress on stderr.

    Args:
        method ([`Method`]): One that is trained.
        original (`PreTrainedModel`): The classifier.
        args (`TrainingArguments`): Of the method's kind.
        request ([`Request`]): What is to be forgotten.
        retain (`datasets.Dataset`, *optional*): Images to keep, where the method looks at them.
        processor: The image processor.
        logs (`bool`): Whether logs are shown too.
    """
    args.scenario = request.scenario
    common: dict[str, Any] = {
        "eval_dataset": request.evaluation_sets() if args.eval_strategy != "no" else None,
        "processing_class": processor,
        "image_column": request.data.image_column,
        "label_column": request.data.label_column,
    }
    if method.edits_weights:
        common["retain_set"] = retain
    trainer: Any = method.load()(original, args, request.forget_set(), **common)
    progress_on_stderr(trainer, logs=logs)
    return trainer
