"""Puts the options of each command, as they stand in the code, in the place of `<!-- options of COMMAND -->`."""

import re

import typer.main

from hf_esc.cli import app

_PLACE = re.compile(r"<!-- options of (?P<command>\w+) -->")


def on_page_markdown(markdown: str, **kwargs) -> str:
    return _PLACE.sub(lambda match: _options(match["command"]), markdown)


def _options(name: str) -> str:
    command = typer.main.get_command(app).commands[name]
    lines = ["| option | default | meaning |", "|---|---|---|"]
    for parameter in command.params:
        flags = [*parameter.opts, *parameter.secondary_opts]
        if parameter.param_type_name == "argument":
            shown = f"`{parameter.metavar or parameter.name.upper()}`"
        else:
            value = f" {parameter.metavar}" if parameter.metavar else ""
            shown = ", ".join(f"`{flag}{value}`" for flag in flags)
        default = "required" if parameter.required else _default(parameter.default)
        lines.append(f"| {shown} | {default} | {parameter.help} |")
    return "\n".join(lines)


def _default(value) -> str:
    return "" if value is None or value is False else f"`{str(value).lower() if value is True else value}`"
