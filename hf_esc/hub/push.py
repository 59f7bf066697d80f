"""Push an erased model to the Hub: weights, code, card, evaluation and figure in one commit."""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, ModelCard
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedModel
from transformers.utils import logging

from ..data.model_batches import processor_at_hand
from ..errors import HubError, shown
from ..evaluation.report import UnlearningReport
from ..evaluation.report_check import misfit
from ..ledger.record import check_ledger, edits_weights, refuse_incomplete
from ..methods import edited_fingerprint
from ..modeling.configuration_esc import is_erased
from ..modeling.fingerprints import weights_sha256
from ..modeling.modeling_esc import inner_classifier
from .card import card_text, incomplete
from .redaction import redacted_config, redacted_report, refuse_forgotten_names, refuse_in_files

EVALUATION, FIGURE = "evaluation.json", "figures/retention.png"
# Files that an earlier push may have left and this one may not write: shards, code of another base, the evaluation.
_STALE = re.compile(
    r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|(modeling|configuration)_\w+\.py|"
    + re.escape(EVALUATION)
    + "|"
    + re.escape(FIGURE)
)
logger = logging.get_logger(__name__)


def push(
    model: PreTrainedModel,
    repo_id: str,
    *,
    report: UnlearningReport | None = None,
    redact: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = "50GB",
    license: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    language: str | list[str] | None = None,
    tags: str | list[str] | None = None,
    allow_incomplete: bool = False,
) -> CommitInfo:
    """
    Push an erased model, or one with edited weights, in one commit: either all of it is on the Hub afterwards or
    nothing.

    The commit holds the weights, configuration and ledger, image processor, label names, the code that loads the model
    where hf_esc is not installed, the card ([`card_text`]; an existing one is brought up to date), and with a report,
    `evaluation.json` and a figure. Images are not pushed: they could show what was forgotten.

    Args:
        model (`PreTrainedModel`): The erased model.
        repo_id (`str`): `name` or `user/name`; made if it is not there.
        report ([`UnlearningReport`], *optional*): Its evaluation. Without one, the card says "not evaluated".
        redact (`bool`, defaults to `False`): Leave the names of forgotten classes out of everything.
        commit_message, commit_description, private, token, revision, create_pr, max_shard_size: As in
            `PreTrainedModel.push_to_hub`.
        allow_incomplete (`bool`, defaults to `False`): Push a model from which the class is not gone; its card says
            so.
        license, language, tags (*optional*): For the card. The licence is that of the base model by default, where its
            card can be read.
        license_name, license_link (`str`, *optional*): What a licence that is `other` is called, and where it is.

    Returns:
        `huggingface_hub.CommitInfo`: With `commit_url`, and `pr_url` of a pull request.

    Raises:
        HubError: If the report is of another model, a name would be said that is to be redacted, or the Hub cannot be
            reached or refuses. What to do is said.
        CheckpointError: If the projection is none, or the ledger has values that are not possible.
    """
    if (license == "other") != (license_name is not None) or (license_link is not None and license_name is None):
        raise HubError(
            f"`license` is {license!r} and `license_name` {license_name!r}: a licence of its own is `other` with a "
            "name, and a known one, such as `mit`, has none."
        )
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} is no name of a repository: {error}") from error
    erased: Any = model
    if is_erased(model):
        erased.check_projections()
    ledger = getattr(model.config, "erasures", None) or []
    if not ledger:
        raise HubError(f"This {type(model).__name__} has no ledger of erasures: nothing was forgotten.")
    check_ledger(ledger)
    if not allow_incomplete:
        refuse_incomplete(ledger, report.forget if report is not None and incomplete(model.config, report) else ())
    weights = weights_sha256(inner_classifier(model))
    if edited_fingerprint(ledger) not in (None, weights):
        raise HubError(
            "The ledger says that the weights were edited to forget, and these are others: they were trained since, "
            "or belong to another model. Push what the edit left, or unlearn again."
        )
    if report is not None and (reason := misfit(report, model.config, weights)):
        raise HubError(
            f"The evaluation is of another model: {reason}. Evaluate this one (`hf-esc evaluate`), or push without."
        )
    original: Any = model.config
    config: Any = original
    if redact:
        config = redacted_config(original)
        report = redacted_report(report, original) if report is not None else None
        words = {"repository's name": repo_id, "branch's name": revision, "commit message": commit_message}
        for where, text in {**words, "commit description": commit_description}.items():
            refuse_forgotten_names(original, text, f"the {where}")
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        saved = copy.copy(model)  # the same weights; other threads go on with the model's own configuration
        saved.config = config
        saved.save_pretrained(folder, max_shard_size=max_shard_size)
        if not is_erased(model) and (processor := processor_at_hand(model)) is not None:
            processor.save_pretrained(folder)
        with hub_errors(repo_id):
            tell_if_public(api, repo_id, private)
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None and not revision.startswith("refs/"):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            head = api.repo_info(repo_id, revision=revision).sha
            existing = _existing_card(api, repo_id, head)
            there = api.list_repo_files(repo_id, revision=head)
        if redact and "config.json" in there:
            logger.warning(
                f"Earlier commits of {repo_id} may still name what is redacted: look, or take another name."
            )
        own_license = {"license": license, "license_name": license_name, "license_link": license_link}
        if license is None:
            own_license = (existing and license_on(existing)) or _license_of(api, config)
        text = card_text(
            config,
            repo_id=repo_id,
            report=report,
            existing=existing,
            figure=FIGURE if report is not None and _draw(report, folder / FIGURE) else None,
            redacted=redact,
            untouched=weights == ledger[-1].get("base_sha256") and not any(map(edits_weights, ledger)),
            license=own_license,
            language=language,
            tags=tags,
        )
        (folder / "README.md").write_text(text, encoding="utf-8")
        if report is not None:
            # Do not publish local paths.
            report = replace(report, model=repo_id, dataset=report.dataset_id or Path(report.dataset).name)
            (folder / EVALUATION).write_text(report.to_json() + "\n", encoding="utf-8")
        if redact:
            refuse_in_files(
                original, folder, {file.name for file in (Path(__file__).parents[1] / "modeling").glob("*.py")}
            )
        with hub_errors(repo_id):
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message or "Upload an erased model",
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
                parent_commit=head,  # what somebody else has written since is not written over
                delete_patterns=[name for name in there if _STALE.fullmatch(name)],
            )


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """What the Hub's client raises, as a [`HubError`] that says how things stand."""
    try:
        yield
    except (TypeError, AttributeError, NameError, ImportError):
        raise  # a fault of ours
    except Exception as error:  # the client's own, and those of whatever it talks HTTP with, which changes
        reason = " ".join(str(error).split()) or type(error).__name__
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == 412:
            reason = "somebody else has written to it meanwhile."
        if status in (401, 403) or isinstance(error, LocalTokenNotFoundError):
            reason += " Log in with `hf auth login`, or set HF_TOKEN, with a token that may write there."
        raise HubError(
            f"{repo_id} was not pushed: {reason} The Hub has all of the commit (where its answer was lost) or nothing "
            "of it; a repository that is new may be empty. When the cause is mended, push again."
        ) from error


def tell_if_public(api: HfApi, repo_id: str, private: bool | None, repo_type: str = "model") -> None:
    """Say, before it is made, that a new repository will be public where nothing else was asked for."""
    if private is None and not api.repo_exists(repo_id, repo_type=repo_type):
        logger.warning(
            f"{repo_id} is new, and everybody will be able to read it, unless its owner's settings say otherwise. "
            "Pass --private (`private=True`) for a repository that only you can read."
        )


def _existing_card(api: HfApi, repo_id: str, revision: str | None) -> str | None:
    try:
        path = api.hf_hub_download(repo_id, "README.md", revision=revision)
    except LocalEntryNotFoundError:  # no answer, which is no sign that there is none
        raise
    except EntryNotFoundError:
        return None
    return Path(path).read_text(encoding="utf-8")


def _license_of(api: HfApi, config: Any) -> dict[str, str | None]:
    """The licence on the card of the base model, where that is on the Hub and says one."""
    record = config.erasures[0]
    if not record.get("base"):
        return {}
    try:
        path = api.hf_hub_download(record["base"], "README.md", revision=record.get("base_revision"))
        return license_on(Path(path).read_text(encoding="utf-8"))
    except Exception:  # as in `hub_errors`
        base = shown(record["base"])
        logger.warning(f"The card of {base} cannot be read, so the licence is left open: pass `license`.")
        return {}


def license_on(card: str) -> dict[str, str | None]:
    """The licence that a card says; one of its own with its name and its link, and nothing where it has no name."""
    try:
        data: Any = ModelCard(card, ignore_metadata_errors=True).data
    except Exception:  # YAML's own, which `card_text` tells of where it matters
        return {}
    found = {key: getattr(data, key, None) for key in ("license", "license_name", "license_link")}
    found = {key: value for key, value in found.items() if isinstance(value, str)}
    if found.get("license") == "other":
        return found if "license_name" in found else {}
    return {"license": found["license"]} if "license" in found else {}


def _draw(report: UnlearningReport, file: Path) -> bool:
    """Whether the figure of a report could be drawn: matplotlib is an extra."""
    try:
        from ..visualization.retention import retention_figure
    except ImportError:
        logger.warning("There is no figure on the card: matplotlib is not installed (`pip install hf_esc[viz]`).")
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    retention_figure(report).savefig(file, dpi=120)
    return True
