"""Check an erased model against its ledger: the projection, the weights, their origin, the code."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageClassification

from ..errors import CheckpointError, ModelError
from ..loading import why_not_loaded
from ..methods import edited_fingerprint
from ..modeling.configuration_esc import is_erased
from ..modeling.fingerprints import weights_sha256
from ..modeling.modeling_esc import AUTO_MAP, ESCModel, copy_code
from ..version import __version__
from .record import edits_weights


@dataclass(frozen=True)
class Check:
    """
    The result of one check.

    Args:
        name (`str`): What was checked.
        passed (`bool`, *optional*): None if it could not be checked.
        detail (`str`): What was found, or why it was not checked.
    """

    name: str
    passed: bool | None
    detail: str


def verify(source: str | Path, *, revision: str | None = None, token: str | bool | None = None) -> list[Check]:
    """
    Check whether a checkpoint is the erased model that its ledger describes, up to the first mismatch.

    The checks, in turn: the checkpoint loads, and its projection is valid and has the fingerprint in the ledger; the
    ledger is whole; the weights inside have the fingerprint in the ledger; they are those of the base model that the
    ledger names, if that is in the cache or on a Hub that can be reached; the code beside the weights is that of this
    version of hf_esc.

    Fingerprints detect accidents and edits. They do not detect a forger, who can write a new ledger. The Hub's commits
    say whom a file is from.

    Args:
        source (`str` or `Path`): A folder, or an id on the Hub.
        revision (`str`, *optional*): Revision on the Hub.
        token (*optional*): As in `from_pretrained`.

    Returns:
        `list[Check]`: All checks that were made. Only the last one can have failed.

    Raises:
        ModelError: If there is no checkpoint at `source`.
    """
    checks = []
    for check in _checks(str(source), revision, token):
        checks.append(check)
        if check.passed is False:
            break
    return checks


def _checks(source: str, revision: str | None, token: str | bool | None) -> Iterator[Check]:
    options: dict[str, Any] = {"revision": revision or "main", "token": token}
    try:
        config = AutoConfig.from_pretrained(source, **options)
    except CheckpointError as error:
        yield Check("erased model", False, str(error))
        return
    except (OSError, ValueError) as error:
        why = why_not_loaded(error, source)
        raise ModelError(f"There is no checkpoint to verify at {source!r}: {why}") from error
    if not is_erased(config):
        plain = f"{source} is a {config.model_type!r} model without a projection"
        ledger = getattr(config, "erasures", None)
        if ledger and all(map(edits_weights, ledger)):  # else the ledger names a projection, and it is not there
            yield from _edited_checks(source, plain, ledger, options)
        else:
            yield Check("erased model", False, plain)
        return
    try:
        model = ESCModel.from_pretrained(source, **options)
    except (CheckpointError, OSError, ValueError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        yield Check("erased model", False, f"it does not load: {error}")
        return
    ledger = model.config.erasures
    last = ledger[-1]
    methods = ", ".join(str(record.get("method")) for record in ledger)
    yield Check("erased model", True, f"{type(model.model).__name__}, {len(ledger)} erased: {methods}")
    yield Check("projection", True, f"is one, and the ledger's: {last['projection_sha256']}")
    # Before its weights were last edited, a model had others.
    first = max((i + 1 for i, record in enumerate(ledger) if edits_weights(record)), default=0)
    if lacking := [i for i, record in enumerate(ledger) if i >= first and not record.get("base_sha256")]:
        yield Check("ledger", False, f"record {lacking[0]} has no fingerprint of the weights")
        return
    if len(recorded := {record["base_sha256"] for record in ledger[first:]}) > 1:
        yield Check("ledger", False, f"the weights changed between its records: {', '.join(sorted(recorded))}")
        return
    yield Check("ledger", True, f"{len(ledger) - first} records of the same weights")
    found = weights_sha256(model.model)
    if found != last["base_sha256"]:
        detail = (
            f"their fingerprint is {found}, and the ledger says {last['base_sha256']}: they were trained, cast to "
        )
        yield Check("weights", False, detail + "another precision or replaced since the erasure")
        return
    if edited_fingerprint(ledger) not in (None, found):
        yield Check("weights", False, f"their fingerprint is {found}, and the ledger says another after their edit")
        return
    yield Check("weights", True, f"the ledger's: {found}")
    if first:
        method = ledger[first - 1].get("method")
        yield Check("base", None, f"the weights were edited ({method}) and are no longer those of the base model")
    else:
        yield _base_check(model, last, token)
    yield _code_check(model, source, last, options)


def _edited_checks(source: str, plain: str, ledger: list[dict], options: dict) -> Iterator[Check]:
    """Of a plain checkpoint whose weights were edited."""
    methods = ", ".join(str(record.get("method")) for record in ledger)
    recorded = edited_fingerprint(ledger)
    if recorded is None:
        yield Check(
            "erased model",
            None,
            f"{plain}: its weights were edited ({methods}), of which the ledger has no fingerprint",
        )
        return
    try:
        model = AutoModelForImageClassification.from_pretrained(source, **options)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        yield Check("erased model", False, f"it does not load: {error}")
        return
    yield Check("erased model", True, f"{plain}; its weights were edited: {methods}")
    found = weights_sha256(model)
    if found != recorded:
        yield Check("weights", False, f"their fingerprint is {found}, and the ledger says {recorded} after the edit")
        return
    yield Check("weights", True, f"those that the edit left: {found}")
    for earlier, later in itertools.pairwise(ledger):
        if earlier.get("weights_sha256") not in (None, later.get("base_sha256")):
            yield Check("ledger", False, "the weights changed between its records")
            return
    yield Check("ledger", True, f"{len(ledger)} records, each of the weights that the one before left")


def _base_check(model: ESCModel, record: dict, token: str | bool | None) -> Check:
    base, revision = record.get("base"), record.get("base_revision")
    if not base:
        return Check("base", None, "the ledger names no base model on the Hub")
    try:
        validate_repo_id(base)
    except HFValidationError:
        return Check("base", False, f"{base!r} is no id on the Hub")
    if not revision:
        return Check("base", None, f"the ledger does not say at which revision {base} was loaded")
    named = f"{base} at {revision}"
    dtype = next(model.model.parameters()).dtype
    try:
        original = type(model.model).from_pretrained(base, revision=revision, dtype=dtype, token=token)
    except (OSError, ValueError, RuntimeError, SafetensorError, HfHubHTTPError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        return Check("base", None, f"{named} is not at hand: {reason}")
    if weights_sha256(original) != record["base_sha256"]:
        return Check("base", False, f"the weights are not those of {named}")
    return Check("base", True, f"the weights are those of {named}")


def _code_check(model: ESCModel, source: str, record: dict, options: dict) -> Check:
    folder = Path(source)
    if not folder.is_dir():
        folder = Path(snapshot_download(source, allow_patterns=["*.py", "*.json"], **options))
    for file in sorted(folder.rglob("*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        expected = AUTO_MAP if file == folder / "config.json" else None
        if isinstance(found, dict) and found.get("auto_map") != expected:
            return Check("code", False, f"{file.name} names other code than that of hf_esc: {found.get('auto_map')}")
    made_with = (record.get("versions") or {}).get("hf_esc")
    if made_with != __version__:
        return Check(
            "code",
            None,
            f"the erasure was made with hf_esc {made_with}, and {__version__} is installed: do not run code that "
            "nobody looked at",
        )
    with tempfile.TemporaryDirectory() as scratch:
        copy_code(Path(scratch), model.model)
        ours = {file.name: file.read_bytes() for file in Path(scratch).glob("*.py")}
    theirs = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.py")}
    if strange := sorted(name for name in theirs if ours.get(name) != theirs[name]):
        return Check("code", False, f"{strange[0]} is not the file that hf_esc {__version__} writes")
    if missing := sorted(set(ours) - set(theirs)):
        return Check("code", False, f"{missing[0]} is missing: without hf_esc, the model does not load")
    return Check("code", True, f"{len(ours)} files of hf_esc {__version__}")
