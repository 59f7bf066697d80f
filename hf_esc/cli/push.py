"""`hf-esc push`: an erased model, a metric or the demo to the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ModelError, OptionError
from . import options
from .report import print_json
from .terminal import say


def push(
    source: Annotated[
        str, typer.Argument(metavar="DIR", help="The folder of an erased model; with --space, a metric or `demo`.")
    ],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="`name` or `user/name` on the Hub.")],
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The evaluation of this model, by `hf-esc evaluate --output`; DIR/evaluation.json where it is there.",
            show_default=False,
        ),
    ] = None,
    redact: Annotated[
        bool, typer.Option("--redact", help="Leave the names of forgotten classes out of everything.")
    ] = False,
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public", help="Of a repository that is new: public by default, so that everybody can read it."
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="The branch to push to; made if it is not there.", show_default=False)
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")] = False,
    message: Annotated[str | None, typer.Option(help="The commit message.", show_default=False)] = None,
    license: Annotated[
        str | None,
        typer.Option(help="For the card; that of the base model by default, where its card can be read."),
    ] = None,
    license_name: Annotated[str | None, typer.Option(help="What a licence of its own, `other`, is called.")] = None,
    license_link: Annotated[str | None, typer.Option(help="Where that licence can be read.")] = None,
    space: Annotated[
        bool, typer.Option("--space", help="Push a metric (`kr_score`, …) or the `demo` as a Space.")
    ] = False,
    allow_incomplete: Annotated[
        bool,
        typer.Option("--allow-incomplete", help="Push a model from which the class is not gone. Its card says so."),
    ] = False,
    json: options.Json = False,
) -> None:
    """
    Push an erased model to the Hub: weights, code, card, evaluation and figure, in one commit.

    The card says what was erased, what is left of it and who can still get it back; one that is there is brought up to
    date. Without an evaluation it says "not evaluated". The token is that of `hf auth login`, or in HF_TOKEN.

    Example: hf-esc push demo user/no-trousers
    """
    licence = {"license": license, "license_name": license_name, "license_link": license_link}
    if space and (report is not None or redact or any(licence.values())):
        raise OptionError("--report, --redact and --license are about models: leave them out with --space.")
    if space:
        from ..hub.space import push_space

        commit = push_space(source, repo, private=private, revision=revision, create_pr=create_pr, message=message)
    else:
        commit = _push_model(
            source, repo, report, redact, private, revision, create_pr, message, licence, allow_incomplete
        )
    where = {"repository": commit.repo_url.repo_id, "commit": commit.oid, "url": commit.pr_url or commit.commit_url}
    if json:
        print_json(where)
    else:
        say(f"Pushed to {where['repository']}: {where['url']}")


def _push_model(source, repo, report, redact, private, revision, create_pr, message, licence, allow_incomplete):
    if not Path(source).is_dir():
        raise ModelError(f"{source!r} is no folder. Name one that `hf-esc erase` or `save_pretrained` wrote.")
    from ..evaluation.report import UnlearningReport
    from ..hub.push import EVALUATION
    from ..hub.push import push as run_push
    from ..loading import load_classifier

    file = report if report is not None else Path(source) / EVALUATION
    evaluation = None
    if report is not None or file.is_file():
        try:
            evaluation = UnlearningReport.from_json(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise OptionError(f"The evaluation {file} cannot be read: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise OptionError(f"The evaluation {file} cannot be read: it is no text.") from error
    model = load_classifier(source, device="cpu")
    if not getattr(model.config, "erasures", None):
        raise ModelError(f"{source!r} holds a {type(model).__name__}, from which nothing was erased.")
    return run_push(
        model,
        repo,
        report=evaluation,
        redact=redact,
        private=private,
        revision=revision,
        create_pr=create_pr,
        commit_message=message,
        **licence,
        allow_incomplete=allow_incomplete,
    )
