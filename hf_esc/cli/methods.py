"""The methods of the command line: which options belong to which, and the errors where one is given to another."""

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

from ..errors import OptionError
from ..methods import METHODS, Method

# The choices of `--method`, as typer wants them.
MethodName = Enum("MethodName", {name: name for name in METHODS}, type=str)  # type: ignore[misc]


def help_text() -> str:
    """The help of `--method`, from the table."""
    in_front = "; ".join(f"`{name}` {row.summary}" for name, row in METHODS.items() if not row.edits_weights)
    trained = "any argument of its training (--learning-rate 0.01, say)"
    return (
        f"In front of the head: {in_front}. All others edit the weights. If one is trained, {trained} can be given, "
        "with its value."
    )


def takes(method: Method, option: str) -> bool:
    """Whether a method takes an option that not all of them do."""
    if option == "retain":
        return method.uses_retain
    return option in method.options or (method.trained and option in ("epochs", "seed"))


def listed(methods: Iterable[Method]) -> str:
    """Their names with commas."""
    return ", ".join(method.name for method in methods)


def refuse_foreign(method: Method, settings: Mapping[str, Any]) -> None:
    """
    Raise an [`OptionError`] where a setting is given (it is not None) that belongs to other methods.

    Args:
        method ([`Method`]): The chosen one.
        settings (`Mapping[str, Any]`): By the names of their options.
    """

    def owners(option: str) -> list[str]:
        return [other.name for other in METHODS.values() if takes(other, option)]

    foreign = [name for name, value in settings.items() if value is not None and not takes(method, name)]
    if not foreign:
        return
    first, *others = owners(foreign[0])
    alike = ", ".join(f"--{name}" for name in foreign if owners(name) == [first, *others])
    names = ", ".join(f"`{other}`" for other in others)
    raise OptionError(
        f"{alike} belongs to `--method {first}`{f' and to {names}' if names else ''}, and this is {method.name}."
    )
