"""The methods of `hf-esc erase`, and which of its settings each of them takes, without any heavy import."""

from collections.abc import Mapping
from enum import Enum
from typing import Any

from ..errors import OptionError


class Method(str, Enum):
    """How to erase. The names of the trained ones are those of `hf_esc.unlearning.METHODS`."""

    ESC = "esc"
    ESC_T = "esc-t"
    REMAP = "remap"
    DELETE = "delete"
    NEG_GRAD = "neg-grad"
    NEG_GRAD_PLUS = "neg-grad-plus"
    RANDOM_LABEL = "random-label"
    BOUNDARY_SHRINK = "boundary-shrink"
    LAU = "lau"
    BAD_TEACHER = "bad-teacher"
    SCRUB = "scrub"
    SALUN = "salun"
    FINETUNE = "finetune"
    L1_SPARSE = "l1-sparse"
    FISHER = "fisher"
    RETRAIN = "retrain"


# Those that change the weights, and leave no projection.
EDITS = tuple(method for method in Method if method not in (Method.ESC, Method.ESC_T, Method.REMAP))
TRAINED = tuple(method for method in EDITS if method is not Method.FISHER)
# Those that look at retain images, with their labels.
RETAIN = (
    Method.NEG_GRAD_PLUS,
    Method.BAD_TEACHER,
    Method.SCRUB,
    Method.SALUN,
    Method.FINETUNE,
    Method.L1_SPARSE,
    Method.FISHER,
    Method.RETRAIN,
)

# The methods that a setting belongs to, by the name of its option.
_OWNERS: dict[str, tuple[Method, ...]] = {
    "p": (Method.ESC,),
    "rank": (Method.ESC,),
    "per-class": (Method.ESC,),
    "tau": (Method.ESC_T,),
    "epochs": (Method.ESC_T, *TRAINED),
    "seed": (Method.ESC_T, Method.REMAP, *EDITS),
    "retain": (Method.REMAP, *RETAIN),
    "bank-size": (Method.REMAP,),
    "gate-threshold": (Method.REMAP,),
}


def listed(methods: tuple[Method, ...]) -> str:
    """Their names with commas."""
    return ", ".join(method.value for method in methods)


def refuse_foreign(method: Method, settings: Mapping[str, Any]) -> None:
    """
    Raise an [`OptionError`] where a setting is given (it is not None) that belongs to other methods.

    Args:
        method (`Method`): The chosen one.
        settings (`Mapping[str, Any]`): By the names of their options.
    """
    foreign = [name for name, value in settings.items() if value is not None and method not in _OWNERS[name]]
    if not foreign:
        return
    owners = _OWNERS[foreign[0]]
    alike = ", ".join(f"--{name}" for name in foreign if _OWNERS[name] == owners)
    names = ", ".join(f"`{owner.value}`" for owner in owners[1:])
    raise OptionError(
        f"{alike} belongs to `--method {owners[0].value}`{f' and to {names}' if names else ''}, "
        f"and this is {method.value}."
    )
