"""A report in words: a table for people, and a table and results for a model card."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from huggingface_hub import EvalResult

from ..errors import shown
from .accuracy import Accuracies
from .attacks import MEANINGS
from .gate import GateCurve, GatePoint
from .markdown import escaped
from .report import Retention, UnlearningReport

# Row titles of the numbers of `Accuracies`. Those of `ANY` stand where two or more classes were forgotten.
ANY = ("any_train", "any_test")
ROWS = {
    "any_train": "D_any  any of them, train",
    "any_test": "D_anyt any of them, test",
    "forget_train": "D_f    forget, train",
    "retain_train": "D_r    retain, train",
    "forget_test": "D_ft   forget, test",
    "retain_test": "D_rt   retain, test",
    "hm_train": "HM     train",
    "hm_test": "HM_t   test",
}
PROBE_TITLES = {
    "paper": "KR, the paper's probe (ten epochs, not trained to the end)",
    "converged": "KR, a converged linear probe",
    "mlp": "KR, an MLP",
    "knn": "KR, nearest neighbours",
    "one_vs_rest": "KR, is it a forgotten class or not",
}

# Column titles of the numbers of a gate's point.
GATE_TITLES = {
    "recall_train": "found, train",
    "recall_test": "found, test",
    "false_alarms_train": "alarms, train",
    "false_alarms_test": "alarms, test",
    "retain_test": "head, D_rt",
}
_GATE_MEANING = (
    "Found: forget images that are remapped; alarms: others that are.",
    "What is not found passes as it is: of these a reader of features gets what the original's features tell.",
)


def table(report: UnlearningReport) -> str:
    """A table for people: a column for each model, and what the numbers mean."""
    lines = _Lines(list(report.models))
    _add_head(lines, report)
    for probe in report.models["model"].retention:
        _add_probe(lines, report, probe)
    _add_metrics(lines, report)
    _add_curve(lines, report)
    _add_attacks(lines, report)
    _add_gates(lines, report)
    return "\n".join(map(shown, lines.text))


class _Lines:
    """The lines of a table: a title on the left, and a cell for each model."""

    def __init__(self, names: Sequence[str]):
        self.text = [f"{'in %':<26}" + "".join(f"{name:>15}" for name in names)]

    def section(self, title: str) -> None:
        self.text += ["", title]

    def row(self, title: str, values: Iterable[float | None], digits: int = 2) -> None:
        self.cells(title, (_cell(value, digits) for value in values))

    def cells(self, title: str, cells: Iterable[str]) -> None:
        self.text.append(f"{title:<26}" + "".join(f"{cell:>15}" for cell in cells))

    def notes(self, notes: Iterable[str]) -> None:
        self.text += [f"  {note}" for note in notes]


def _add_head(lines: _Lines, report: UnlearningReport) -> None:
    lines.section("the head")
    for key, title in rows(vars(result.accuracies) for result in report.models.values()).items():
        lines.row(title, (getattr(result.accuracies, key) for result in report.models.values()))
    for name, pairs in _by_class(report):
        for index, title in enumerate(("train", "test")):
            lines.row(f"  {name}, {title}", (pair[index] if pair else None for pair in pairs))


def _add_probe(lines: _Lines, report: UnlearningReport, probe: str) -> None:
    results = report.models.values()
    lines.section(PROBE_TITLES.get(probe, probe))
    found = [result.retention[probe] for result in results]
    for key, title in rows(each.mean for each in found).items():
        lines.cells(title, ("constant" if _constant(each) else _cell(each.mean.get(key)) for each in found))
    lines.row("recovery rate", (report.recovery_rate(probe, name) for name in report.models))
    excess = [report.excess_knowledge(probe, name) for name in report.models]
    if any(value is not None for value in excess):
        lines.row("excess knowledge", (None if value is None else 100 * value for value in excess))
    if not all(result.retention[probe].settings.get("converged", True) for result in results):
        lines.notes(["(not converged: more can be read than this)"])
    if any(map(_constant, found)):
        lines.notes(["(constant: it tells no class from another, and would be right or wrong by their order)"])


def _add_metrics(lines: _Lines, report: UnlearningReport) -> None:
    results = report.models.values()
    lines.section("membership inference of forget images (50: chance; what a retrained model has is the reference)")
    for key, title in (("accuracy", "accuracy"), ("auc", "AUC"), ("tpr_at_1_fpr", "TPR at 1 % FPR")):
        lines.row(title, (getattr(result.membership, key, None) for result in results))
    lines.section("ZRF on forget images (1: as a random network)")
    lines.row("ZRF", (getattr(result.zrf, "zrf", None) for result in results), digits=3)
    gaps = [report.average_gap(name) for name in report.models]
    if any(gap is not None for gap in gaps):
        lines.section("Avg Gap: how far accuracies and membership inference are from the retrained model's")
        lines.row("Avg Gap", gaps)


def _add_curve(lines: _Lines, report: UnlearningReport) -> None:
    results = report.models.values()
    if any(result.curve for result in results):
        lines.section("KR of a converged probe on D_ft, by labelled forget images of each class")
        several = any(point.any_test is not None for result in results for point in result.curve or [])
        for index, point in enumerate(report.models["model"].curve or []):
            found = [result.curve[index] if result.curve else None for result in results]
            if several:
                lines.row(f"{point.labelled}, any of them", (at.any_test if at else None for at in found))
            lines.row(str(point.labelled), (at.forget_test if at else None for at in found))


def _add_attacks(lines: _Lines, report: UnlearningReport) -> None:
    attacks = report.models["model"].attacks or {}
    if attacks:
        several = any(r is not None and r.any_test is not None for r in attacks.values())
        shares = "forget test images taken for any forgotten class / right" if several else "right of forget"
        lines.section(f"attacks: {shares} / retain test images (the original's number: all there is to get)")
    for attack in attacks:
        found = [(result.attacks or {}).get(attack) for result in report.models.values()]
        lines.cells(
            attack, ("-" if r is None else _shares(r.any_test, r.forget_test, r.retain_test, 1) for r in found)
        )
    lines.notes(f"{attack}: {MEANINGS[attack]}" for attack in attacks)


def _add_gates(lines: _Lines, report: UnlearningReport) -> None:
    for gate in report.gates or []:
        lines.section(f"the gate of the remap of {_names(report, gate)}: which of the images are remapped")
        lines.cells("", GATE_TITLES.values())
        for point in gate.points:
            lines.row(_gate_title(point), (getattr(point, key) for key in GATE_TITLES))
    if report.gates:
        lines.notes(_GATE_MEANING)


def markdown(report: UnlearningReport) -> str:
    """
    A Markdown table for a model card: forget / retain accuracies of the head and of each probe, other metrics and
    attacks, a column for each model. Where two or more classes were forgotten, the share of forget images that are
    taken for any of them stands in front. For each remap, a table of its gate follows.
    """
    names = list(report.models)
    shown = ["this model" if name == "model" else escaped(name) for name in names]
    lines = [" | ".join(["|", *shown]) + " |"]
    lines.append("|" + " --- |" * (len(names) + 1))

    def row(title: str, values: Iterable[str]) -> None:
        lines.append(f"| {title} | " + " | ".join(values) + " |")

    readers: dict[str, list[Accuracies | None]] = {"head": [result.accuracies for result in report.models.values()]}
    for probe in report.models["model"].retention:
        found = [result.retention[probe] for result in report.models.values()]
        means = [None if _constant(each) else Accuracies(**each.mean) for each in found]
        readers[PROBE_TITLES.get(probe, probe)] = means
    for title, each in readers.items():
        for split in ("train", "test"):
            keys = (f"any_{split}", f"forget_{split}", f"retain_{split}")
            cells = ("constant" if a is None else _shares(*(getattr(a, key) for key in keys)) for a in each)
            row(f"{title}: {'training' if split == 'train' else 'test'} images", cells)
    for name, pairs in _by_class(report):
        title = f"head on {escaped(name)} alone: training / test images"
        row(title, (" / ".join(map(_cell, pair)) if pair else "-" for pair in pairs))
    results = report.models.values()
    row("membership inference, AUC", (_cell(getattr(result.membership, "auc", None)) for result in results))
    row("ZRF", (_cell(getattr(result.zrf, "zrf", None), 3) for result in results))
    for attack in report.models["model"].attacks or {}:
        attempts = [(result.attacks or {}).get(attack) for result in results]
        cells = (_shares(a.any_test, a.forget_test, a.retain_test) if a else "-" for a in attempts)
        row(f"attack `{attack}`, test images: {MEANINGS[attack]}", cells)
    for gate in report.gates or []:
        title = f"The gate of the remap of {escaped(_names(report, gate))}, in %."
        lines += [
            "",
            " ".join([title, *_GATE_MEANING]),
            "",
            " | ".join(["|", *GATE_TITLES.values()]) + " |",
            "|" + " --- |" * (len(GATE_TITLES) + 1),
        ]
        for at in gate.points:
            row(_gate_title(at), (_cell(getattr(at, key)) for key in GATE_TITLES))
    return "\n".join(lines)


def eval_results(report: UnlearningReport) -> list[EvalResult]:
    """
    The numbers of the model under test for the `model-index` of a model card.

    Each is named after who reads (the head, or a probe) and what (such as `D_ft`).
    """
    result = report.models["model"]
    short = {key: title.split()[0] for key, title in ROWS.items()}
    named = {f"head {title}": getattr(result.accuracies, key) for key, title in short.items()}
    for probe, retention in result.retention.items():
        named |= {f"KR ({probe}) {title}": retention.mean.get(key) for key, title in short.items()}
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=report.dataset_id or "images",
            dataset_name=report.dataset_id or Path(report.dataset).name,
            metric_type="kr_score" if name.startswith("KR") else "accuracy",
            metric_name=f"{name} (%)",
            metric_value=round(value, 2),
        )
        for name, value in named.items()
        if value is not None
    ]


def _by_class(report: UnlearningReport) -> list[tuple[str, list[list[float | None] | None]]]:
    """The head's accuracies on each forgotten class, by model; nothing where a single class was forgotten."""
    if len(report.forget) < 2 or report.models["model"].by_class is None:
        return []
    each = [result.by_class for result in report.models.values()]
    return [(name, [by[index] if by else None for by in each]) for index, name in enumerate(report.forget)]


def _names(report: UnlearningReport, gate: GateCurve) -> str:
    """The classes of a remap. Those that the report does not name are told by number."""
    names = dict(zip(report.forget_labels, report.forget, strict=True))
    return ", ".join(names.get(label, f"class {label}") for label in gate.labels)


def rows(found: Iterable[Mapping[str, float | None]]) -> dict[str, str]:
    """`ROWS`, without those of `ANY` where no model has these: where one class was forgotten."""
    several = any(each.get(key) is not None for each in found for key in ANY)
    return {key: title for key, title in ROWS.items() if several or key not in ANY}


def _constant(retention: Retention) -> bool:
    return bool(retention.settings.get("constant"))


def _shares(of_any: float | None, forget: float | None, retain: float | None, digits: int = 2) -> str:
    """Shares in a cell, with that of any forgotten class in front where there are several."""
    shares = (forget, retain) if of_any is None else (of_any, forget, retain)
    return " / ".join(_cell(share, digits) for share in shares)


def _cell(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _gate_title(point: GatePoint) -> str:
    title = "argmax" if point.threshold is None else f"threshold {point.threshold:g}"
    return f"{title} (in force)" if point.in_force else title
