"""
Finds the class that is meant: matches label names of a data set and of a model, and reads names or numbers of a user.

The worst bug would be to erase the wrong class silently. So this module never guesses: names that do not match are an
error that lists both sides.
"""

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ..errors import LabelError, ModelError

# Stands in for the name of a forgotten class, if the name itself must not appear.
_REDACTED = re.compile(r"redacted-\d+")
_PLACEHOLDER = re.compile(r"label_\d+", re.IGNORECASE)
# In place of a class of the model: several are called so, and nothing tells which one is meant.
UNCLEAR = -1


def model_label_names(config) -> list[str] | None:
    """
    The names in a model's `id2label`, in the order of its logits. None if they are `LABEL_0`, `LABEL_1`, …

    Raises:
        LabelError: If its keys are not the numbers from 0 on: class i is the i-th logit, and anything else is a guess.
    """
    if not config.id2label:
        return None
    by_number = numbered_names(config)
    names = [by_number[index] for index in range(len(by_number))]
    return None if all(_PLACEHOLDER.fullmatch(name) for name in names) else names


def numbered_names(config) -> dict[int, str]:
    """`id2label` with whole numbers as keys: a file, or a user, may write them as text. Raises as above."""
    id2label: Mapping[int | str, str] = config.id2label
    named = {int(key): str(name) for key, name in id2label.items() if re.fullmatch(r"\d+", str(key))}
    if set(named) != set(range(len(id2label))):
        raise LabelError(
            f"The `id2label` of the model has the keys {_listed(list(map(str, id2label)))}, and class i is logit i: "
            f"they should be 0 to {len(id2label) - 1}. Number the classes from 0, in the order of the logits."
        )
    return named


def check_classes(config) -> None:
    """
    Raise unless a model gives each image one of several classes, by numbers from 0 on.

    Raises:
        ModelError: If it gives an image several labels, or one number.
        LabelError: As [`model_label_names`].
    """
    kind = getattr(config, "problem_type", None)
    if kind == "multi_label_classification":
        raise ModelError(
            "This model gives an image several labels (`problem_type` is multi_label_classification). A class is "
            "erased from models that give each image one: whether a label of several is gone, nothing here tells."
        )
    if kind == "regression" or config.num_labels == 1:
        raise ModelError(
            "This model gives an image one number and no class (a single logit, or `problem_type` is regression). "
            "There is no class to forget. A classifier of two classes has two logits."
        )
    model_label_names(config)


def erased_labels(config) -> set[int]:
    """The classes of a model that were erased according to its ledger. Empty for a model without a ledger."""
    return {label for record in getattr(config, "erasures", []) for label in record.get("label_ids") or ()}


def erased_earlier(config, labels: Iterable[int]) -> list[int]:
    """
    The classes of a model that its ledger says were erased and that are not among `labels`, the model's classes of the
    request at hand. They are neither forgotten by it nor retained.
    """
    return sorted(erased_labels(config) - set(labels))


def redacted_name(label: int) -> str:
    """The name that replaces the name of class `label`, if the name itself must not appear."""
    return f"redacted-{label}"


def class_names(names: Sequence[str]) -> list[str] | None:
    """The names of classes. None if they are "0", "1", "2", …, which are only numbers."""
    return None if all(name == str(index) for index, name in enumerate(names)) else list(names)


def match_labels(
    data_names: Sequence[str] | None,
    model_names: Sequence[str] | None,
    num_data: int,
    num_model: int,
    *,
    unclear: bool = False,
) -> list[int]:
    """
    For each class of the data set, its class in the model.

    Classes are matched by name, in whatever order they come. The data set may hold only some of the model's classes.
    Classes are matched by number only if one side has no names and the counts agree. A redacted name of the model, and
    a name that several of its classes have, matches the data set's class of the same number if all other names stand
    at the same places. Otherwise a redacted name matches the only class that no other name takes.

    Args:
        data_names (`Sequence[str]`, *optional*): Class names of the data set. None if its classes only have numbers.
        model_names (`Sequence[str]`, *optional*): Class names of the model in the order of its logits. None if it has
            no names.
        num_data (`int`): Classes in the data set.
        num_model (`int`): Classes in the model.
        unclear (`bool`, defaults to `False`): Whether a name that several classes of the model have is `UNCLEAR`
            instead of an error, so that the other classes can be used.

    Returns:
        `list[int]` of length `num_data`: the model's class index for each class index of the data set.

    Raises:
        LabelError: If a name of the data set matches none of the model's names or several of them; if one side has no
            names and the counts differ, or the names of the other are numbers in another order.
    """
    if data_names is None or model_names is None:
        for names, named, other in ((data_names, "data set", "model"), (model_names, "model", "data set")):
            if names and set(names) == set(map(str, range(len(names)))) and class_names(names) is not None:
                first = next(index for index, name in enumerate(names) if name != str(index))
                raise LabelError(
                    f"The classes of the {named} are called by numbers in another order: class {first} is called "
                    f"{names[first]!r}. The classes of the {other} only have numbers, so {first} could mean the class "
                    f"of that number or the one called {str(first)!r}. Give the {other} the names too: the data set a "
                    "ClassLabel, or the model an `id2label`, in their order."
                )
        # A model whose classes are called 0, 1, 2, … has names that are their numbers.
        numbered = model_names is not None and class_names(model_names) is None
        if num_data > num_model or (num_data < num_model and not numbered):
            raise LabelError(
                f"The data set has {num_data} classes ({_listed(data_names)}) and the model {num_model} "
                f"({_listed(model_names)}). One of them has no label names, so they can only be matched by number, "
                "which needs equal counts. Give the data set a ClassLabel column or the model an `id2label`."
            )
        return list(range(num_data))
    data_folded, model_folded = list(map(_folded, data_names)), list(map(_folded, model_names))
    if num_data == num_model and _stand_at_the_same_places(data_folded, model_folded):
        return list(range(num_data))
    redacted = [index for index, name in enumerate(model_names) if _REDACTED.fullmatch(name)]
    unknown = set(data_folded) - set(model_folded)
    one = redacted[0] if len(redacted) == len(unknown) == 1 else None
    times = Counter(model_folded)
    try:
        matched = [
            one
            if one is not None and folded in unknown
            else UNCLEAR
            if unclear and times[folded] > 1
            else _find(name, model_names)
            for name, folded in zip(data_names, data_folded, strict=True)
        ]
        clear = [label for label in matched if label != UNCLEAR]
        if len(set(clear)) < len(clear):
            raise LabelError("Two of them are the same class of the model.")
        return matched
    except LabelError as error:
        raise LabelError(
            f"The data set's labels are not the model's: {error} Data set: {_listed(data_names)}. Model: "
            f"{_listed(model_names)}. Rename one side: the model's `id2label`, or the data set's ClassLabel names."
        ) from None


def _stand_at_the_same_places(data_names: list[str], model_names: list[str]) -> bool:
    """
    Whether two lists of folded names are one list. Where the model's name is redacted or several of its classes have
    it, the data set's may be any that the model has nowhere else.
    """
    times = Counter(model_names)
    free = {name for name in model_names if times[name] > 1 or _REDACTED.fullmatch(name.replace(" ", "-"))}
    return data_names == model_names or (
        any(times[name] == 1 for name in model_names)  # something that tells the order
        and all(
            data == model or (model in free and data not in times)
            for data, model in zip(data_names, model_names, strict=True)
        )
    )


def resolve_labels(
    requested: str | int | Iterable[str | int], names: Sequence[str] | None, count: int, *, numbers: bool = True
) -> list[int]:
    """
    The class indices that a user's labels mean.

    A label is a name or a number. Case, spaces, hyphens and underscores of a name do not matter, and one synonym of a
    name such as `"tench, Tinca tinca"` is enough. `"#3"` always means the number 3, even if a class is named "3". A
    comma separates labels, unless the whole string is a name.

    Args:
        requested (`str`, `int` or an iterable of them): The labels as the user wrote them.
        names (`Sequence[str]`, *optional*): Class names. None if the classes only have numbers.
        count (`int`): Number of classes.
        numbers (`bool`, defaults to `True`): Whether the model numbers its classes as the data set does. Otherwise
            only names are taken, and a number only where a class is called so.

    Returns:
        `list[int]`: Sorted class indices without repetition, at least one.

    Raises:
        LabelError: If a label does not exist (the message lists similar names), if it is the name of one class and the
            number of another, if it is a number and `numbers` is not set, or if no label is given.
    """
    wanted = [requested] if isinstance(requested, str | int) else list(requested)
    indices: set[int] = set()
    for label in wanted:
        parts: list[str | int] = [label]
        if isinstance(label, str) and "," in label and not (names and _folded(label) in map(_folded, names)):
            parts = [part.strip() for part in label.split(",") if part.strip()]
        indices.update(_resolve_one(part, names, count, numbers) for part in parts)
    if not indices:
        raise LabelError("No label to forget was given. Name at least one class.")
    return sorted(indices)


def _resolve_one(label: str | int, names: Sequence[str] | None, count: int, numbers: bool) -> int:
    text = str(label).strip()
    if isinstance(label, str) and re.fullmatch(r"#\d+", text):
        return _resolve_one(int(text[1:]), names, count, numbers)
    number = int(text) if re.fullmatch(r"[+-]?\d+", text) else None
    if isinstance(label, str) and names is not None:
        try:
            index = _find(text, names)
        except LabelError:
            if number is None:
                raise
        else:
            if numbers and number is not None and number != index and 0 <= number < count:
                raise LabelError(
                    f"{text!r} is the name of class {index} and the number of class {number} ({names[number]!r}). "
                    f"Write '#{index}' for the first or '#{number}' for the second."
                )
            return index
    if number is None:
        raise LabelError(f"{text!r} is a name, and there are no label names here. Use a number from 0 to {count - 1}.")
    if not 0 <= number < count:
        raise LabelError(f"There is no class {number}: the {count} classes are {_listed(names, count)}.")
    if not numbers and names is not None:
        raise LabelError(
            f"Class {number} is {names[number]!r} in the data set and another one in the model, which numbers its "
            "classes differently. Use the name."
        )
    return number


def _find(name: str, names: Sequence[str]) -> int:
    """The only index of `name` in `names`: of the same name, else of a name that has it among its synonyms."""
    wanted = _folded(name)
    matches = [index for index, other in enumerate(names) if _folded(other) == wanted]
    if not matches:
        wanted_synonyms = {_folded(part) for part in name.split(",")}
        matches = [
            index
            for index, other in enumerate(names)
            if wanted_synonyms & {_folded(part) for part in other.split(",")}
        ]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise LabelError(f"{name!r} could be any of the classes {matches}. Use a number.")
    near = _near(wanted, {_folded(other): other for other in names})
    hint = f"Near it: {_listed(near, most=5)}." if near else f"The labels are {_listed(names)}."
    raise LabelError(f"There is no label {name!r}. {hint}")


def _near(wanted: str, folded: Mapping[str, str]) -> list[str]:
    """The names that `wanted` could mean, by what they fold to: misspelt, or with only some of their words."""
    close = difflib.get_close_matches(wanted, list(folded), n=3)
    words = set(wanted.split())
    close += [name for name in folded if words and words <= set(re.findall(r"\w+", name))]
    return [folded[name] for name in dict.fromkeys(close)]


def _folded(name: str) -> str:
    """What two ways to write a name have in common: letter case, spaces, and letters with their accents apart."""
    text = re.sub(r"[\s_\-]+", " ", unicodedata.normalize("NFC", name)).strip().casefold()
    return unicodedata.normalize("NFC", text)


def _listed(names: Sequence[str] | None, count: int | None = None, most: int = 20) -> str:
    if names is None:
        return "no names" if count is None else f"0 to {count - 1}"
    shown = ", ".join(map(repr, names[:most]))
    return shown if len(names) <= most else f"{shown}, … {len(names) - most} more"
