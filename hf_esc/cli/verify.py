"""`hf-esc verify`: whether an erased model is what its ledger says."""

from dataclasses import asdict
from typing import Annotated

import typer

from . import options
from .report import print_json
from .terminal import say


def verify(
    source: Annotated[str, typer.Argument(metavar="DIR|REPO", help="A folder, or an id on the Hub.")],
    revision: options.Revision = None,
    json: options.Json = False,
) -> None:
    """
    Look whether an erased model is what its ledger says: the projection, the weights and their origin, the settings,
    the names of the classes, the image processor, the code, the ledger's own text, and the evaluation.

    Exit code 1 with the first thing that is not so, and where nothing shows what the weights or the projection should
    be. What cannot be looked at, such as a base model that is not at hand or what an older record does not show, is
    said and does not count.

    Example: hf-esc verify demo
    """
    from ..hub.verification import verify as look

    checks = look(source, revision=revision)
    passed = all(check.passed is not False for check in checks)
    if json:
        print_json({"source": source, "passed": passed, "checks": [asdict(check) for check in checks]})
    else:
        marks = {True: "ok", False: "MISMATCH", None: "not checked"}
        for check in checks:
            say(f"{marks[check.passed]:<12}{check.name}: {check.detail}")
    if not passed:
        raise typer.Exit(1)
