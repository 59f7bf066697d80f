"""
Check a checkpoint against its ledger: the projection, the weights, what computes beside them, the code, and what is
said of it.
"""

from __future__ import annotations

import copy
import itertools
import json
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.dynamic_module_utils import custom_object_save, get_relative_imports

from ..data.labels import numbered_names
from ..errors import CheckpointError, DataError, LabelError, ModelError
from ..evaluation.report import UnlearningReport
from ..evaluation.report_check import misfit
from ..ledger.fingerprints import labels_sha256, processor_sha256, record_sha256, settings, settings_sha256
from ..ledger.record import check_ledger, edits_weights
from ..loading import first_line, why_not_loaded
from ..methods import edited_fingerprint, of_earlier_head
from ..modeling.configuration_esc import is_erased
from ..modeling.fingerprints import weights_sha256
from ..modeling.modeling_esc import AUTO_MAP, ESCModel, copy_code, inner_classifier
from ..version import __version__
from .push import EVALUATION

# What the configuration of an erased model has: the classifier's, what is in front of its head (other checks are of
# these), and the image processor of a timm model, which has a fingerprint.
_OF_WRAPPER = {"base_config", "sites", "factors", "model_type", "pretrained_cfg", "image_processor_type"}
_OF_WRAPPER |= {"architecture"}
_PROCESSOR = ("preprocessor_config.json", "processor_config.json")


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

    The checks, in turn:

    - the checkpoint loads, and its projection is valid and has the fingerprint in the ledger;
    - the ledger is whole, its values are possible ones, and its records have the fingerprints of their text;
    - the weights have the fingerprint in the ledger: those inside an erased model, or those that an edit left;
    - they are those of the base model that the ledger names, if that is in the cache or on a Hub that can be reached;
    - the settings of the classifier, the names of its classes and the image processor are those of the erasure;
    - the code beside the weights is that of this version of hf_esc;
    - the evaluation beside them is of this model, and was not changed.

    Then it lists the other files, which nothing is known of. What is absent, and what a record of an older version
    does not show, is said and does not count. Without a record of the projection or of the weights there is nothing to
    check the model by, and that is a mismatch.

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
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **options)
    except Exception as error:  # of a damaged file, transformers raises what comes of it
        there = (Path(source) / "config.json").is_file() or isinstance(error, CheckpointError)
        if isinstance(error, OSError | ValueError) and not there:
            why = why_not_loaded(error, source)
            raise ModelError(f"There is no checkpoint to verify at {source!r}: {why}") from error
        yield Check("erased model", False, f"its configuration cannot be read: {error}")
        return
    ledger: Any = getattr(config, "erasures", None)
    if not is_erased(config) and not (ledger and _all_edits(ledger)):
        yield Check("erased model", False, f"{source} is a {config.model_type!r} model without a projection")
        return
    kind: Any = ESCModel if is_erased(config) else AutoModelForImageClassification
    try:
        model = kind.from_pretrained(source, trust_remote_code=False, **options)
    except Exception as error:  # as above
        yield Check("erased model", False, f"it does not load: {error}")
        return
    try:
        check_ledger(ledger)
    except CheckpointError as error:
        yield Check("ledger", False, str(error))
        return
    folder = Path(source)
    if not folder.is_dir():
        folder = Path(snapshot_download(source, allow_patterns=["*.py", "*.json"], **options))
    yield from (_front_checks if is_erased(config) else _edited_checks)(model, ledger, token)
    yield _text_check(model.config, ledger)
    yield _settings_check(model.config, ledger[-1])
    yield _labels_check(model.config, ledger)
    yield _processor_check(source, folder, ledger[-1], options)
    ours, auto_map = _our_code(model)
    theirs = _code_that_runs(folder, ours, auto_map)
    yield _code_check(folder, ours, theirs, auto_map, ledger[-1])
    yield _evaluation_check(model, folder)
    yield _files_check(folder, theirs, None if folder == Path(source) else source, options)


def _all_edits(ledger: Any) -> bool:
    """Whether each record is of edited weights; else the ledger names a projection, and it is not there."""
    try:
        return all(map(edits_weights, ledger))
    except (CheckpointError, AttributeError, TypeError):
        return False


# The weights.


def _front_checks(model: ESCModel, ledger: Sequence[dict], token: str | bool | None) -> Iterator[Check]:
    """Of a model with something in front of its head."""
    last = ledger[-1]
    methods = ", ".join(str(record.get("method")) for record in ledger)
    yield Check("erased model", True, f"{type(model.model).__name__}, {len(ledger)} erased: {methods}")
    yield Check("projection", True, f"is one, and the ledger's: {last['projection_sha256']}")
    # Before its weights were last edited, or its head replaced, a model had others.
    others = [i for i, record in enumerate(ledger) if edits_weights(record) or of_earlier_head(record)]
    first = others[-1] + 1 if others else 0
    if of_earlier_head(last):
        detail = "its head was replaced after the last erasure, and the ledger has no fingerprint of the weights since"
        yield Check("ledger", False, detail)
        return
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
    yield _edited_base(ledger[first - 1]) if first else _base_check(model, last, token)


def _edited_checks(model: PreTrainedModel, ledger: Sequence[dict], token: str | bool | None) -> Iterator[Check]:
    """Of a plain checkpoint whose weights were edited."""
    methods = ", ".join(str(record.get("method")) for record in ledger)
    yield Check("erased model", True, f"{type(model).__name__}, whose weights were edited: {methods}")
    for earlier, later in itertools.pairwise(ledger):
        if earlier.get("weights_sha256") not in (None, later.get("base_sha256")):
            yield Check("ledger", False, "the weights changed between its records")
            return
    yield Check("ledger", True, f"{len(ledger)} records, each of the weights that the one before left")
    recorded, found = edited_fingerprint(ledger), weights_sha256(model)
    if recorded is None:
        detail = "the ledger has no fingerprint of them after their edit: nothing tells whether these are they"
        yield Check("weights", False, detail)
        return
    if found != recorded:
        yield Check("weights", False, f"their fingerprint is {found}, and the ledger says {recorded} after the edit")
        return
    yield Check("weights", True, f"those that the edit left: {found}")
    yield _edited_base(ledger[-1])


def _edited_base(record: Mapping[str, Any]) -> Check:
    if of_earlier_head(record):
        return Check("base", None, "the head was replaced, and the weights are no longer the base model's")
    return Check("base", None, f"the weights were edited ({record.get('method')}) and are no longer the base model's")


def _base_check(model: ESCModel, record: dict, token: str | bool | None) -> Check:
    base, revision = record.get("base"), record.get("base_revision")
    if not base:
        return Check("base", None, "not compared: the ledger names no base model on the Hub")
    try:
        validate_repo_id(base)
    except HFValidationError:
        return Check("base", False, f"{base!r} is no id on the Hub")
    if not revision:
        return Check("base", None, f"not compared: the ledger does not say at which revision {base} was loaded")
    named = f"{base} at {revision}"
    dtype = next(model.model.parameters()).dtype
    try:
        original = type(model.model).from_pretrained(base, revision=revision, dtype=dtype, token=token)
    except (OSError, ValueError, RuntimeError, SafetensorError, HfHubHTTPError) as error:
        return Check("base", None, f"not compared: {named} is not at hand: {first_line(error)}")
    if weights_sha256(original) != record["base_sha256"]:
        return Check("base", False, f"the weights are not those of {named}")
    # A record of now has a fingerprint of the settings at the erasure, which a user may have changed before.
    if "settings_sha256" not in record and settings(original.config) != settings(model.config.base_config):
        return Check("base", False, f"the weights are those of {named}, and the settings are not")
    return Check("base", True, f"the weights are those of {named}")


# What computes beside them, and what is said.


def _text_check(config: Any, ledger: Sequence[Mapping[str, Any]]) -> Check:
    """What the records say, against their fingerprints and against the names of the classes."""
    before, without = None, []
    names = numbered_names(config) if config.id2label else {}
    for place, record in enumerate(ledger):
        said = [str(name) for name in record.get("labels") or ()]
        named = not of_earlier_head(record)  # the classes of the model
        if said and named and said != [names.get(label, str(label)) for label in record.get("label_ids") or ()]:
            return Check("ledger's text", False, f"record {place} names {said}, and the model other classes there")
        recorded = record.get("record_sha256")
        if recorded is None and "settings_sha256" not in record:  # both are written, and taken out, together
            without.append(str(place))
        elif recorded != record_sha256(record, before):
            return Check("ledger's text", False, f"record {place} was changed, or one before it, since {recorded}")
        before = recorded
    if without:
        detail = f"record {', '.join(without)} has no fingerprint of what it says, as in older versions of hf_esc, or "
        detail += "where the head was replaced"
        return Check("ledger's text", None, detail)
    return Check("ledger's text", True, f"{len(ledger)} records as they were written")


def _settings_check(config: Any, record: Mapping[str, Any]) -> Check:
    """The settings of the classifier, and that the wrapper around it has none of its own."""
    if is_erased(config):
        usual = PretrainedConfig().to_dict()
        own = settings(config)
        if others := [key for key in sorted(set(own) - _OF_WRAPPER) if key not in usual or own[key] != usual[key]]:
            detail = f"beside the classifier's, the erased model has a setting {others[0]!r}: {own[others[0]]!r}"
            return Check("settings", False, detail)
    return _compared("settings", record, "settings_sha256", settings_sha256(config), "settings of the classifier")


def _labels_check(config: Any, ledger: Sequence[Mapping[str, Any]]) -> Check:
    try:
        found = [labels_sha256(each) for each in (config, getattr(config, "base_config", config)) if each.id2label]
    except LabelError as error:
        return Check("labels", False, str(error))
    if len(set(found)) > 1:
        return Check("labels", False, "the classifier inside has other names of classes, or another order of them")
    return _compared("labels", ledger[-1], "labels_sha256", labels_sha256(config), "names of the classes")


def _processor_check(source: str, folder: Path, record: Mapping[str, Any], options: Any) -> Check:
    try:
        processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False, **options)
    except Exception as error:  # as above
        if any((folder / name).is_file() for name in _PROCESSOR):
            return Check("image processor", False, f"it does not load: {error}")
        return Check("image processor", None, f"absent: there is no {_PROCESSOR[0]}")
    found, what = processor_sha256(processor), "settings of the image processor"
    return _compared("image processor", record, "processor_sha256", found, what)


def _compared(name: str, record: Mapping[str, Any], key: str, found: str | None, what: str) -> Check:
    """A fingerprint against the one in the last record of the ledger."""
    recorded = record.get(key)
    if recorded is None:
        return Check(name, None, f"the ledger has no fingerprint of the {what}")
    if found != recorded:
        return Check(name, False, f"the {what} are not those at the erasure: {found} is not {recorded}")
    return Check(name, True, f"the ledger's: {found}")


def _our_code(model: PreTrainedModel) -> tuple[dict[str, bytes], dict[str, str] | None]:
    """The code that belongs beside a checkpoint, by name, and the `auto_map` of its configuration."""
    with tempfile.TemporaryDirectory() as scratch:
        auto_map = _write_code(model, Path(scratch))
        return {file.name: _lines(file) for file in Path(scratch).glob("*.py")}, auto_map


def _code_that_runs(folder: Path, ours: Collection[str], auto_map: Mapping[str, Any] | None) -> dict[str, bytes]:
    """
    The code in a folder that has a name of ours, or that transformers runs: what `auto_map` names, and what that
    imports, in turn, as transformers reads it. Other code is the user's.
    """
    named = [name for name in (auto_map or {}).values() if isinstance(name, str)]
    left = [*ours, *(f"{name.rpartition('.')[0]}.py" for name in named)]
    found: dict[str, bytes] = {}
    while left:
        file = folder / (name := left.pop())
        if name in found or not file.is_file():
            continue
        found[name] = _lines(file)
        with suppress(UnicodeDecodeError):  # which is no code of ours
            left += [f"{module}.py" for module in get_relative_imports(file)]
    return found


def _lines(file: Path) -> bytes:
    # Git on Windows ends lines otherwise.
    return file.read_bytes().replace(b"\r\n", b"\n")


def _code_check(
    folder: Path,
    ours: Mapping[str, bytes],
    theirs: Mapping[str, bytes],
    auto_map: Mapping[str, str] | None,
    record: Mapping[str, Any],
) -> Check:
    # Nothing in a folder below is loaded with this one: a Trainer keeps whole checkpoints there.
    for file in sorted(file for file in folder.glob("*.json") if file.is_file()):
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:  # no JSON, so it names no code
            continue
        named = found if isinstance(found, dict) else {}
        if named.get("auto_map") != (auto_map if file == folder / "config.json" else None):
            return Check("code", False, f"{file.name} names other code than that of hf_esc: {named.get('auto_map')}")
        if "custom_pipelines" in named:
            return Check("code", False, f"{file.name} names code of a pipeline: {named['custom_pipelines']}")
    strange = sorted(name for name in theirs if ours.get(name) != theirs[name])
    missing = sorted(set(ours) - set(theirs))
    made_with = (record.get("versions") or {}).get("hf_esc")
    if strange and made_with != __version__:
        return Check(
            "code",
            None,
            f"not compared: the erasure was made with hf_esc {made_with}, and {__version__} is installed: do not run "
            "code that nobody looked at",
        )
    if strange:
        return Check("code", False, f"{strange[0]} is not the file that hf_esc {__version__} writes")
    if missing:
        return Check("code", False, f"{missing[0]} is missing: without hf_esc, the model does not load")
    return Check("code", True, f"{len(ours)} files of hf_esc {__version__}")


def _write_code(model: PreTrainedModel, folder: Path) -> dict[str, str] | None:
    """Write the code that belongs beside a checkpoint, and return the `auto_map` of its configuration."""
    if isinstance(model, ESCModel):
        copy_code(folder, model.model)
        return dict(AUTO_MAP)
    config: Any = copy.deepcopy(model.config)
    config.__dict__.pop("auto_map", None)
    for part in (config, model):
        if part._auto_class is not None:
            custom_object_save(part, folder, config=config)
    return getattr(config, "auto_map", None)


def _evaluation_check(model: PreTrainedModel, folder: Path) -> Check:
    file = folder / EVALUATION
    if not file.is_file():
        return Check("evaluation", None, f"absent: there is no {EVALUATION}")
    try:
        report = UnlearningReport.from_json(file.read_text(encoding="utf-8"))
    except (DataError, UnicodeDecodeError) as error:
        return Check("evaluation", False, f"{EVALUATION}: {error}")
    if reason := misfit(report, model.config, weights_sha256(inner_classifier(model))):
        return Check("evaluation", False, f"{EVALUATION}: {reason}")
    return Check("evaluation", True, f"of this model, on {Path(report.dataset).name}, as it was written")


def _files_check(folder: Path, code: Collection[str], repo_id: str | None, options: Mapping[str, Any]) -> Check:
    """What else is there, or in the repository. An adapter would be put into the model by whoever has peft."""
    index = folder / "model.safetensors.index.json"
    known = {"config.json", *_PROCESSOR, "model.safetensors", index.name, EVALUATION, *code}
    if index.is_file():
        known |= {*json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values()}
    if repo_id is None:
        there = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    else:
        try:
            there = HfApi(token=options["token"]).list_repo_files(repo_id, revision=options["revision"])
        except Exception as error:  # the client's own, and those of whatever it talks HTTP with
            return Check("other files", None, f"not listed: {error}")
    others = [name for name in sorted({*there} - known) if name.endswith(".py") or not name.startswith(".")]
    if adapters := [name for name in others if name.startswith("adapter_")]:
        return Check("other files", False, f"{adapters[0]}: with peft installed, it would change the model")
    return Check("other files", None if others else True, f"not looked at: {', '.join(others)}" if others else "none")
