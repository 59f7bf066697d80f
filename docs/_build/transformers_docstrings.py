"""
Reads docstrings in the way of transformers: [`name`] is a link, and a type in backticks may say more than a type.
"""

import re
from collections.abc import Iterator

import griffe

_LINK = re.compile(r"\[`(?P<name>[A-Za-z_][\w.]*)`\](?![\[(])")
_DEFAULT = re.compile(r"(, )?(\*optional\*|defaults to .*)$")


class TransformersDocstrings(griffe.Extension):
    """Links names that are in the package, and takes types from signatures, where they are links too."""

    def on_package(self, *, pkg: griffe.Module, **kwargs) -> None:
        objects = list(_objects(pkg))
        paths: dict[str, str] = {}
        for item in objects:
            if (item.is_class or item.is_function) and not item.name.startswith("_"):
                paths.setdefault(item.name, item.path)
                if item.parent is not None and item.parent.is_class:
                    paths[f"{item.parent.name}.{item.name}"] = item.path

        def link(match: re.Match) -> str:
            name = match["name"]
            path = paths.get(name.removeprefix(f"{pkg.name}."))
            return f"[`{name}`][{path}]" if path else f"`{name}`"

        for item in objects:
            if item.docstring is not None:
                item.docstring.value = _LINK.sub(link, item.docstring.value)
                item.docstring.__dict__["parsed"] = _sections(item)


def _objects(parent: griffe.Object) -> Iterator[griffe.Object]:
    yield parent
    for member in parent.members.values():
        if not member.is_alias:
            yield from _objects(member)


def _sections(item: griffe.Object) -> list[griffe.DocstringSection]:
    options = {"returns_named_value": False, "returns_multiple_items": False, "warnings": False}
    sections = item.docstring.parse("google", **options)
    for section in sections:
        if section.kind is griffe.DocstringSectionKind.parameters:
            for part in section.value:
                _mend(part, _parameter_type(item, part.name))
        elif section.kind is griffe.DocstringSectionKind.attributes:
            for part in section.value:
                _mend(part, None)
        elif section.kind is griffe.DocstringSectionKind.returns:
            for part in section.value:
                _mend(part, getattr(item, "returns", None))
    return sections


def _mend(part: griffe.DocstringElement, in_signature) -> None:
    """The signature's type in the place of the docstring's, whose shapes move into the description."""
    if not isinstance(part.annotation, str) or not ("`" in part.annotation or "*" in part.annotation):
        return
    said = part.annotation
    while (shorter := _DEFAULT.sub("", said)) != said:
        said = shorter
    part.annotation = in_signature
    if said and (in_signature is None or " of " in said or " with " in said):
        part.description = f"{said}: {part.description}" if part.description else said


def _parameter_type(item: griffe.Object, name: str):
    function = item.members.get("__init__") if item.is_class else item
    try:
        return function.parameters[name].annotation
    except (AttributeError, KeyError):
        member = item.members.get(name)
        return getattr(member, "annotation", None)
