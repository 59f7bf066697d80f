"""The model card of an erased model: what was erased, what is left, who can get it back, and how to check it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedModel

from ..errors import HubError
from ..evaluation.markdown import escaped
from ..evaluation.report import UnlearningReport
from ..evaluation.report_check import check_values
from ..evaluation.report_text import eval_results, markdown
from ..ledger.record import MOST_UNCHANGED, check_ledger, edits_weights, not_gone
from ..loading import first_line
from ..methods import METHODS
from ..modeling.configuration_esc import is_erased
from ..modeling.projection import FACTORS

TEMPLATE = Path(__file__).with_name("card_template.md")
# For a model whose weights were edited and which has nothing in front of its head.
EDITED_TEMPLATE = Path(__file__).with_name("card_template_edited.md")
BEGIN = "<!-- begin hf_esc: written anew on each push; what stands outside of these two lines is yours -->"
END = "<!-- end hf_esc -->"
TAGS = ["machine-unlearning", "concept-erasure", "esc"]
# The keys of a record that are no settings of its method.
_NO_SETTINGS = {"method", "kind", "labels", "label_ids", "num_images", "unchanged", "unchanged_by_label"}
_NO_SETTINGS |= {"right_after_by_label"}
_NO_SETTINGS |= {"right_before", "unchanged_of", "base", "base_revision", "versions", "date", "base_sha256"}
_NO_SETTINGS |= {"settings_sha256", "labels_sha256", "processor_sha256", "record_sha256"}
_NO_SETTINGS |= {"brought_back", "complete", "weights_sha256", "projection_sha256"}


def write_card(model: PreTrainedModel, folder: Path, **options) -> None:
    """
    Write `README.md` in a folder, or bring the one that is there up to date.

    Args:
        model (`PreTrainedModel`): The erased model, or one with edited weights.
        folder (`Path`): Where.
        options: Of [`card_text`].

    Raises:
        HubError: As [`card_text`].
    """
    file = folder / "README.md"
    there = file.read_text(encoding="utf-8") if file.exists() else None
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(card_text(model.config, existing=there, **options), encoding="utf-8")


def card_text(
    config: Any,
    *,
    repo_id: str | None = None,
    report: UnlearningReport | None = None,
    accuracies: Mapping[str, float] | None = None,
    existing: str | None = None,
    figure: str | None = None,
    redacted: bool = False,
    untouched: bool = False,
    license: str | Mapping[str, str | None] | None = None,
    language: str | list[str] | None = None,
    tags: str | list[str] | None = None,
) -> str:
    """
    The card of an erased model.

    If a card exists, the part between the two marks is written anew (or added at the end, if there are no marks). Text
    and metadata that a person wrote stay.

    Args:
        config (`PretrainedConfig`): Of the erased model, or of one with edited weights: it has a ledger.
        repo_id (`str`, *optional*): Where it is to be on the Hub.
        report ([`UnlearningReport`], *optional*): Its evaluation. Without one, the card says "not evaluated".
        accuracies (`Mapping[str, float]`, *optional*): What the trainer measured, in %, by the name of the data. They
            stand on the card of edited weights where there is no report.
        existing (`str`, *optional*): The card that is there.
        figure (`str`, *optional*): Path in the repository of a figure of the report.
        redacted (`bool`, defaults to `False`): Whether the forgotten classes' names were taken out of `config`.
        untouched (`bool`, defaults to `False`): Whether the weights are known to be the base model's still.
        license (`str` or `Mapping`, *optional*): Overrides the one that is there. One of its own has three entries:
            `license` is `other`, `license_name` and `license_link`.
        language, tags (*optional*): More of them.

    Raises:
        HubError: If the metadata of the card that is there cannot be read, or the report has values that are not
            possible.
        CheckpointError: If the ledger has such values.
    """
    check_ledger(config.erasures)
    if report is not None:
        _check_report(report)
    metadata, text = _parts(existing)
    given = [tags] if isinstance(tags, str) else list(tags or [])
    results = [result for result in metadata.pop("eval_results", None) or [] if not _ours(result)]
    results += eval_results(report) if report is not None else []
    record = config.erasures[-1] if config.erasures else {}
    base = _hub_id(record.get("base"))
    dataset = _hub_id(report.dataset_id) if report is not None else None
    datasets = [dataset] if dataset else []
    name = (repo_id or "").split("/")[-1] or "erased image classifier"
    in_front = is_erased(config)
    licence = {"license": license} if isinstance(license, str) else dict(license or {})
    if licence.get("license"):  # the name and the link that are there are of another one
        metadata = {key: value for key, value in metadata.items() if key not in ("license_name", "license_link")}
    merged = {
        **metadata,
        **{key: value for key, value in licence.items() if value is not None},
        "library_name": "hf_esc" if in_front else "transformers",
        "pipeline_tag": "image-classification",
        "tags": _union(_listed(metadata.get("tags")), TAGS if in_front else TAGS[:1], given),
        "metrics": _union(_listed(metadata.get("metrics")), ["accuracy", "kr_score"] if report is not None else []),
        "datasets": _union(_listed(metadata.get("datasets")), datasets),
        "language": language or metadata.get("language"),
        "eval_results": results or None,
        "model_name": (metadata.get("model_name") or name) if results else None,
    }
    if base:
        merged |= {"base_model": base, "base_model_relation": metadata.get("base_model_relation") or "finetune"}
    data = ModelCardData(**{key: value for key, value in merged.items() if value not in (None, [])})
    own = f"{BEGIN}\n\n{_section(config, repo_id, report, accuracies, figure, redacted, untouched)}\n\n{END}"
    if BEGIN in text and END in text[text.index(BEGIN) :]:
        start = text.index(BEGIN)
        text = text[:start] + own + text[text.index(END, start) + len(END) :]
    else:
        text = f"{text.rstrip()}\n\n{own}\n" if text.strip() else f"# {escaped(name)}\n\n{own}\n"
    return f"---\n{data.to_yaml()}\n---\n\n{text.lstrip()}"


def _check_report(report: UnlearningReport) -> None:
    if not {"paper", "converged"} <= set(report.models["model"].retention):
        raise HubError("The evaluation lacks the paper's probe or a converged one: they stand together or not at all.")
    try:
        check_values(report.to_dict())
    except (ValueError, TypeError) as error:
        raise HubError(f"The evaluation was not measured: {error}. Evaluate the model again.") from error


def _parts(existing: str | None) -> tuple[dict[str, Any], str]:
    """Metadata and text of the card that is there."""
    if not existing:
        return {}, ""
    try:
        card = ModelCard(existing)
        return dict(card.data.__dict__), card.text
    except Exception as error:  # YAML that is none, or that is no card's
        raise HubError(
            f"The metadata of the README.md that is there cannot be read: {first_line(error)} Mend what "
            "stands between its first two lines of ---, or take the file away."
        ) from error


def _ours(result: EvalResult) -> bool:
    return re.fullmatch(r"(head|KR \(\w+\)) (D_\w+|HM\w*) \(%\)", str(result.metric_name)) is not None


def _hub_id(name: Any) -> str | None:
    """A name on the Hub as it is; what is none does not stand on a card."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _listed(values: Any) -> list[str]:
    return [values] if isinstance(values, str) else list(values or [])


def _union(*lists: list[str]) -> list[str]:
    return list(dict.fromkeys(value for values in lists for value in values))


def _section(
    config: Any,
    repo_id: str | None,
    report: UnlearningReport | None,
    accuracies: Mapping[str, float] | None,
    figure: str | None,
    redacted: bool,
    untouched: bool,
) -> str:
    ledger = config.erasures
    what = "these images" if all(record.get("scenario") == "images" for record in ledger) else "the class"
    names = _union(*([str(name) for name in record.get("labels") or []] for record in ledger))
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, finalize=_as_markdown)
    in_front = is_erased(config)
    template = TEMPLATE if in_front else EDITED_TEMPLATE
    on_hub = _hub_id(report.dataset_id) if report is not None else None
    dataset = _Markdown(on_hub) if on_hub else None
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        forgotten=", ".join(names) or "some of its training images",
        erasures=[_row(record) for record in ledger],
        base=_Markdown(base) if (base := _hub_id(ledger[0].get("base")) if ledger else None) else None,
        base_revision=(ledger[0].get("base_revision") or "") if ledger else "",
        report=report,
        dataset_name=(dataset or Path(report.dataset).name) if report is not None else "",
        has_original=report is not None and "original" in report.models,
        has_retrain=report is not None and "retrain" in report.models,
        several_classes=report is not None and report.models["model"].accuracies.any_train is not None,
        left_out=", ".join(report.left_out) if report is not None else "",
        table=_Markdown(markdown(report)) if report is not None else "",
        figure=_Markdown(figure) if figure is not None else None,
        threat=_threat(report, what=what, in_front=in_front, edited=any(map(edits_weights, ledger))),
        images_alone=all(record.get("scenario") == "images" for record in ledger),
        edited=any(map(edits_weights, ledger)),
        several=any(map(edits_weights, ledger[1:])) and report is None,
        accuracies={name: f"{value:.1f}" for name, value in (accuracies or {}).items()},
        redacted=redacted,
        untouched=untouched,
        incomplete=incomplete(config, report),
        basis=any(FACTORS[factor["type"]].linear for factors in getattr(config, "factors", ()) for factor in factors),
        bound=_bound(report),
        bank=sum(record.get("bank_size") or 0 for record in ledger),
        repo_id=_Markdown(_hub_id(repo_id) or "REPO"),
        dataset=dataset or "DATA",
    )


class _Markdown(str):
    """Text that is Markdown already: of our own making, or an id on the Hub, which has no character of Markdown's."""


def _as_markdown(value: Any) -> str:
    """What a template shows: all but our own Markdown as it is, whoever wrote it."""
    return value if isinstance(value, _Markdown) else escaped(str(value))


def incomplete(config: Any, report: UnlearningReport | None) -> bool:
    """Whether the head still says a forgotten class to more images than an erasure should leave."""
    if not_gone(config.erasures):
        return True
    left: list[float] = []
    if report is not None:
        accuracies = report.models["model"].accuracies
        shares = [accuracies.forget_train, accuracies.forget_test] if report.forget else []
        # The mean of several classes can hide one that stays.
        shares += [share for pair in report.models["model"].by_class or [] for share in pair]
        left += [share / 100 for share in shares if share is not None]
    return max(left, default=0) > MOST_UNCHANGED


def _row(record: Mapping[str, Any]) -> dict[str, str]:
    """A record of the ledger as cells of a table."""
    known = METHODS.get(str(record.get("method")))
    keys = (known.shown if known is not None else ()) or [key for key in record if key not in _NO_SETTINGS]
    settings = [f"{key} {record[key]}" for key in keys if record.get(key) is not None and record[key] is not False]
    unchanged, of = record.get("unchanged"), record.get("unchanged_of")
    after = record.get("right_after_by_label")
    unnamed = "single images" if record.get("scenario") == "images" else "images without labels"
    return {
        "classes": ", ".join(map(str, record.get("labels") or [])) or unnamed,
        "method": _Markdown(known.title) if known is not None else str(record.get("method")),
        "settings": ", ".join(settings),
        "images": str(record.get("num_images", "")),
        "unchanged": "not known" if unchanged is None else f"{100 * unchanged:.1f} % of {of}",
        "after": "not known" if not after else f"{100 * max(after):.1f} %",
        "date": str(record.get("date", ""))[:10],
    }


def _bound(report: UnlearningReport | None) -> str:
    """What the gates in force miss, as the end of a sentence."""
    gates = report.gates if report is not None else None
    missed = [100 - point.recall_test for gate in gates or [] for point in gate.points if point.in_force]
    if not missed:
        return _Markdown(", which was not measured here")
    return _Markdown(f": {' and '.join(f'{share:.1f} %' for share in missed)} of the forget test images")


def _threat(report: UnlearningReport | None, *, what: str, in_front: bool, edited: bool) -> dict[str, str]:
    """Who can recover `what`: a line each, with the numbers of the report where there is one."""
    lines = {
        "predictions": "sees what the head says, which was not measured here.",
        "features": "a probe that is trained to the end on them reads {what} as before after ESC and ESC-T, and "
        "what the gate misses of it after remap, in all that was measured with such maps; here it was not measured.",
        "file": "takes the projection off, and has "
        + ("what was there before it." if edited else "the original model."),
    }
    if not in_front:
        lines["features"] = (
            "editing weights moves the head's answers. What a probe that is trained to the end on the features still "
            f"reads of {what} was not measured here, and it may be all of it."
        )
        lines["file"] = "can train it on, and a few images of the class may be enough to bring it back."
        if what != "the class":
            lines["file"] = "can train it on with these images, where they are at hand."
    if report is None:
        return {name: _Markdown(line) for name, line in lines.items()}
    found, original = report.models["model"], report.models.get("original")
    split, images = ("test", "test") if report.num_forget_test else ("train", "training")
    key, read = f"forget_{split}", "gets {share:.1f} % of {which} right"
    # A reader that takes one forgotten class for another still tells them from the rest.
    if getattr(found.accuracies, f"any_{split}") is not None:
        key, read = f"any_{split}", "takes {share:.1f} % of {which} for one of the forgotten classes"
    head, probe = getattr(found.accuracies, key), found.retention["converged"].mean.get(key)
    lines["predictions"] = f"the head {read.format(share=head, which=f'the forget {images} images')}"
    lines["features"] = "a linear probe that is trained to the end tells no class from another"
    if probe is not None:
        lines["features"] = f"a converged linear probe {read.format(share=probe, which='them')}"
    if original is not None:
        lines["predictions"] += f", and {getattr(original.accuracies, key):.1f} % before"
        before = original.retention["converged"].mean.get(key)
        lines["features"] += "" if before is None else f", and {before:.1f} % from the original's features"
    return {name: _Markdown(line if line.endswith(".") else f"{line}.") for name, line in lines.items()}
