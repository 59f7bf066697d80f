"""The one way from here to the terminal: text of others, such as class names, cannot act on it."""

import typer

from ..errors import shown


def say(*lines: object, err: bool = False) -> None:
    """Print lines on stdout, or on stderr with `err`, each as [`shown`] has it."""
    typer.echo("\n".join(map(shown, lines)), err=err)
