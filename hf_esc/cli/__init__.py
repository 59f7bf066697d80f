"""The command `hf-esc`. Heavy libraries are imported inside the commands, so that `--help` is quick."""

import sys
import warnings
from typing import Any

import typer

from ..errors import HfEscError, IncompleteErasureWarning, shown
from ..saving import is_of_disk
from .erase import erase
from .evaluate import evaluate
from .processes import end_as_one, leave_others, several
from .push import push
from .terminal import say
from .train import train
from .verify import verify
from .words import Command, EraseCommand

app = typer.Typer(
    name="hf-esc",
    help="Make an image classifier forget a class, and measure what is left.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=EraseCommand)(erase)
app.command(cls=Command)(evaluate)
app.command(cls=Command)(verify)
app.command(cls=Command)(push)
# Every argument goes to the parser of the training arguments, `--help` too.
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})(
    train
)


@app.callback(invoke_without_command=True)
def _root(context: typer.Context, version: bool = typer.Option(False, "--version", help="Show the version.")) -> None:
    if version:
        from ..version import __version__

        say(__version__)
        raise typer.Exit


_as_python_does = warnings.showwarning


def _say(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
    """A warning to users without the place in the code, which is of no use to them."""
    if category in (UserWarning, IncompleteErasureWarning):
        say(f"Warning: {message}", err=True)
    else:
        _as_python_does(shown(message), category, *args, **kwargs)


def main() -> None:
    """
    Run the command line.

    Exit code 0: done, and complete; 1: `verify` found a mismatch; 2: the input is at fault, and the message says what
    to do; 3: what was to be forgotten is not gone, or an earlier class came back; 130: Ctrl-C. Several processes end
    with the code of the first; only `train` divides its work among them. What only tells something (`verify`,
    `--help`, `--version`) waits for none of them.
    """
    warnings.showwarning = _say
    words = sys.argv[1:]
    if several():
        if not _only_tells(words):
            end_as_one(_run, divided="train" in words[:1])
        leave_others()
    _run()


def _only_tells(words: list[str]) -> bool:
    """
    Whether a command writes nothing. Such a one does not wait for other processes, which may not be there: some
    clusters set what a launcher sets for every shell.
    """
    return not words or words[0] == "verify" or bool({"--version", "--help", "-h"} & {*words})


def _run() -> None:
    try:
        app()
    except HfEscError as error:
        say(f"Error: {error}", err=True)
        sys.exit(2)
    except Exception as error:
        if not is_of_disk(error):
            raise
        say(f"Error: Something cannot be read or written: {error}. Is the disk full, or read-only?", err=True)
        sys.exit(2)
    except KeyboardInterrupt:  # while the command line is read; typer catches those of a command
        say("Aborted.", err=True)
        sys.exit(130)


__all__ = ["app", "main"]
