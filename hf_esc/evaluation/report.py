"""What an evaluation found: one value that is JSON, a table for people, and results for a model card."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from ..errors import DataError
from .accuracy import Accuracies
from .attacks import MEANINGS, AttackResult
from .differences import average_gap
from .gate import GateCurve, GatePoint
from .knowledge_retention import CurvePoint
from .membership import MembershipInference
from .zrf import ZeroRetrainForgetting

_SCHEMA = 1
# The six numbers of `Accuracies`, as tables call them.
ROWS = {
    "forget_train": "D_f    forget, train",
    "retain_train": "D_r    retain, train",
    "forget_test": "D_ft   forget, test",
    "retain_test": "D_rt   retain, test",
    "hm_train": "HM     train",
    "hm_test": "HM_t   test",
}
_PROBES = {
    "paper": "KR, the paper's probe (ten epochs, not trained to the end)",
    "converged": "KR, a converged linear probe",
    "mlp": "KR, an MLP",
    "knn": "KR, nearest neighbours",
    "one_vs_rest": "KR, is it a forgotten class or not",
}

# Of a point of a gate's curve.
_GATE = {
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


@dataclass(frozen=True)
class Retention:
    """
    What a probe reads, over its seeds.

    Args:
        mean (`dict[str, float | None]`): The six numbers of [`Accuracies`], in %.
        spread (`dict[str, float | None]`): Their standard deviations.
        runs (`int`): Number of seeds.
        settings (`dict`): Of the probe, and whether it converged.
    """

    mean: dict[str, float | None]
    spread: dict[str, float | None]
    runs: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class ModelResult:
    r"""
    One model's numbers.

    Args:
        accuracies ([`Accuracies`]): Of its own head.
        retention (`dict[str, Retention]`): By probe.
        curve (`list[CurvePoint]`, *optional*): The KR curve.
        membership ([`MembershipInference`], *optional*): Forget images of the training set against the test set.
        zrf ([`ZeroRetrainForgetting`], *optional*): Against the random network.
        attacks (`dict[str, AttackResult | None]`, *optional*): By name; None where an attack cannot be made on this
            model.
        by_class (`list[list[float | None]]`, *optional*): Of its own head, \(D_f\) and \(D_{ft}\) of each forgotten
            class in the order of the report's `forget`: one that stays must not hide behind others that went. None
            where rows were forgotten.
    """

    accuracies: Accuracies
    retention: dict[str, Retention]
    curve: list[CurvePoint] | None = None
    membership: MembershipInference | None = None
    zrf: ZeroRetrainForgetting | None = None
    attacks: dict[str, AttackResult | None] | None = None
    by_class: list[list[float | None]] | None = None


@dataclass(frozen=True)
class UnlearningReport:
    """
    An evaluation by [`evaluate_unlearning`].

    Args:
        model, dataset (`str`): What was evaluated, and on what.
        forget (`list[str]`): Names of the forgotten classes; empty where rows were forgotten.
        forget_labels (`list[int]`): Their indices in the model.
        num_forget_train, num_forget_test (`int`): Forget images.
        method (`list[str]`): The methods in the model's ledger.
        seeds (`list[int]`): Of the probes and of membership inference.
        models (`dict[str, ModelResult]`): The model under test (`model`), and its references.
        left_out (`list[str]`): Names of classes that were erased too and are counted neither as forgotten nor as
            retained.
        dataset_id (`str`, *optional*): The data set's id on the Hub, where it came from there.
        projection_sha256 (`str`, *optional*): The fingerprint in the ledger of the erased model that was evaluated.
        weights_sha256 (`str`, *optional*): The fingerprint of the weights inside of it.
        random_seed (`int`, *optional*): Of the random network's weights; None where one was given.
        gates (`list[GateCurve]`, *optional*): Of each remap in the model, what its gate finds, and would with other
            thresholds; None of a model without one.
        versions (`dict[str, str]`): Of the libraries.
    """

    model: str
    dataset: str
    forget: list[str]
    forget_labels: list[int]
    num_forget_train: int
    num_forget_test: int
    method: list[str]
    seeds: list[int]
    models: dict[str, ModelResult]
    left_out: list[str] = field(default_factory=list)
    dataset_id: str | None = None
    projection_sha256: str | None = None
    weights_sha256: str | None = None
    random_seed: int | None = None
    gates: list[GateCurve] | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def recovery_rate(self, probe: str, name: str = "model") -> float | None:
        """
        Fig. 1 of the paper: what a probe gets right of the forget training images, in % of what the original's head
        did. None without an original, or where its head got nothing right.
        """
        original = self.models.get("original")
        found = self.models[name].retention[probe].mean["forget_train"]
        if original is None or not original.accuracies.forget_train or found is None:
            return None
        return 100 * found / original.accuracies.forget_train

    def excess_knowledge(self, probe: str, name: str = "model") -> float | None:
        r"""
        How far a model's KR on forget test images stands between the retrained model's (0) and the original's (1):
        \((\mathrm{KR} - \mathrm{KR}_{\mathrm{r}}) / (\mathrm{KR}_{\mathrm{o}} - \mathrm{KR}_{\mathrm{r}})\).

        Below 0 less is read than from a model that has never seen the class. None without both references, or where
        they are within one point of each other, as the ratio then says nothing.
        """
        key = "forget_test" if self.num_forget_test else "forget_train"
        values = []
        for column in (name, "retrain", "original"):
            result = self.models.get(column)
            value = result.retention[probe].mean[key] if result is not None else None
            if value is None:
                return None
            values.append(value)
        found, retrain, original = values
        return (found - retrain) / (original - retrain) if abs(original - retrain) > 1 else None

    def average_gap(self, name: str = "model") -> float | None:
        """
        Avg Gap of Table 5 of the paper: the mean distance from the retrained model, in points, of the head's
        accuracies and of membership inference. Where random images were forgotten these are, as there, the accuracies
        on forget, retain and test images; where classes were, test images count as forget and as retain.

        None without a retrained model, or with too few images for membership inference.
        """
        sides: list[dict[str, float]] = []
        for column in (name, "retrain"):
            result = self.models.get(column)
            if result is None or result.membership is None:
                return None
            shares = ("forget_train", "retain_train", "forget_test", "retain_test")
            values = {share: getattr(result.accuracies, share) for share in shares}
            present = {share: value for share, value in values.items() if value is not None}
            sides.append({**present, "membership": result.membership.accuracy})
        return average_gap(*sides)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with what follows from them: `recovery_rate` and `excess_knowledge` by probe."""
        probes = list(self.models["model"].retention)
        return {
            "schema": _SCHEMA,
            **asdict(self),
            "recovery_rate": {probe: self.recovery_rate(probe) for probe in probes},
            "excess_knowledge": {probe: self.excess_knowledge(probe) for probe in probes},
            "average_gap": self.average_gap(),
        }

    def to_json(self) -> str:
        """[`UnlearningReport.to_dict`] as text."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_json(cls, text: str) -> UnlearningReport:
        """
        Back from [`UnlearningReport.to_json`].

        Raises:
            DataError: If it is no such report.
        """
        try:
            values = json.loads(text)
            if values.pop("schema") != _SCHEMA:
                raise ValueError("it is of another version")
            for derived in ("recovery_rate", "excess_knowledge", "average_gap"):
                values.pop(derived)
            values["models"] = {name: _result(result) for name, result in values["models"].items()}
            # Reports that were written before there was a gate have none.
            values["gates"] = _gates(values.get("gates"))
            if "model" not in values["models"]:
                raise ValueError("it is of no model")
            each = [result.by_class for result in values["models"].values() if result.by_class is not None]
            if any(len(shares) != len(values["forget"]) for shares in each):
                raise ValueError("its classes are not those that it names")
            return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"This is no report of hf_esc: {type(error).__name__}: {error}") from error

    def table(self) -> str:
        """For people: a column for each model, and what the numbers mean."""
        names = list(self.models)
        results = self.models.values()
        lines = [f"{'in %':<26}" + "".join(f"{name:>15}" for name in names)]

        def row(title: str, values) -> None:
            lines.append(f"{title:<26}" + "".join(f"{_cell(value):>15}" for value in values))

        def section(title: str) -> None:
            lines.append(f"\n{title}")

        section("the head")
        for key, title in ROWS.items():
            row(title, (getattr(result.accuracies, key) for result in results))
        for name, pairs in self._by_class():
            for index, title in enumerate(("train", "test")):
                row(f"  {name}, {title}", (pair[index] if pair else None for pair in pairs))
        for probe in self.models["model"].retention:
            section(_PROBES.get(probe, probe))
            for key, title in ROWS.items():
                row(title, (result.retention[probe].mean[key] for result in results))
            row("recovery rate", (self.recovery_rate(probe, name) for name in names))
            excess = {name: self.excess_knowledge(probe, name) for name in names}
            if any(value is not None for value in excess.values()):
                row("excess knowledge", (None if value is None else 100 * value for value in excess.values()))
            if not all(result.retention[probe].settings.get("converged", True) for result in results):
                lines.append("  (not converged: more can be read than this)")
        section("membership inference of forget images (50: chance; what a retrained model has is the reference)")
        for key, title in (("accuracy", "accuracy"), ("auc", "AUC"), ("tpr_at_1_fpr", "TPR at 1 % FPR")):
            row(title, (getattr(result.membership, key, None) for result in results))
        section("ZRF on forget images (1: as a random network)")
        lines.append(f"{'ZRF':<26}" + "".join(f"{_cell(getattr(r.zrf, 'zrf', None), 3):>15}" for r in results))
        gaps = {name: self.average_gap(name) for name in names}
        if any(gap is not None for gap in gaps.values()):
            section("Avg Gap: how far accuracies and membership inference are from the retrained model's")
            row("Avg Gap", gaps.values())
        if any(result.curve for result in results):
            section("KR of a converged probe on D_ft, by labelled forget images of each class")
            for index, point in enumerate(self.models["model"].curve or []):
                row(str(point.labelled), (r.curve[index].forget_test if r.curve else None for r in results))
        if attacks := self.models["model"].attacks:
            section("attacks: right of forget / retain test images (the original's number: all there is to get)")
            for attack in attacks:
                found = [(result.attacks or {}).get(attack) for result in results]
                cells = ["-" if r is None else f"{r.forget_test:.1f} / {r.retain_test:.1f}" for r in found]
                lines.append(f"{attack:<26}" + "".join(f"{cell:>15}" for cell in cells))
            lines += [f"  {attack}: {MEANINGS[attack]}" for attack in attacks]
        for gate in self.gates or []:
            section(f"the gate of the remap of {self._names(gate)}: which of the images are remapped")
            lines.append(f"{'':<26}" + "".join(f"{title:>15}" for title in _GATE.values()))
            for at in gate.points:
                row(_gate_title(at), (getattr(at, key) for key in _GATE))
        if self.gates:
            lines += [f"  {sentence}" for sentence in _GATE_MEANING]
        return "\n".join(lines)

    def markdown(self) -> str:
        """
        For a model card: forget / retain accuracies of the head and of each probe, a column for each model. A table
        for the gate of each remap follows.
        """
        names = list(self.models)
        shown = ["this model" if name == "model" else escaped(name) for name in names]
        lines = [" | ".join(["|", *shown]) + " |"]
        lines.append("|" + " --- |" * (len(names) + 1))

        def row(title: str, values: Iterable[str]) -> None:
            lines.append(f"| {title} | " + " | ".join(values) + " |")

        readers = {"head": [result.accuracies for result in self.models.values()]}
        for probe in self.models["model"].retention:
            means = [Accuracies(**result.retention[probe].mean) for result in self.models.values()]
            readers[_PROBES.get(probe, probe)] = means
        for title, found in readers.items():
            row(f"{title}: training images", (f"{_cell(a.forget_train)} / {_cell(a.retain_train)}" for a in found))
            row(f"{title}: test images", (f"{_cell(a.forget_test)} / {_cell(a.retain_test)}" for a in found))
        for name, pairs in self._by_class():
            title = f"head on {escaped(name)} alone: training / test images"
            row(title, (" / ".join(map(_cell, pair)) if pair else "-" for pair in pairs))
        results = self.models.values()
        row("membership inference, AUC", (_cell(getattr(result.membership, "auc", None)) for result in results))
        row("ZRF", (_cell(getattr(result.zrf, "zrf", None), 3) for result in results))
        for attack in self.models["model"].attacks or {}:
            attempts = [(result.attacks or {}).get(attack) for result in results]
            cells = (f"{_cell(a.forget_test)} / {_cell(a.retain_test)}" if a else "-" for a in attempts)
            row(f"attack `{attack}`, test images: {MEANINGS[attack]}", cells)
        for gate in self.gates or []:
            title = f"The gate of the remap of {escaped(self._names(gate))}, in %."
            lines += [
                "",
                " ".join([title, *_GATE_MEANING]),
                "",
                " | ".join(["|", *_GATE.values()]) + " |",
                "|" + " --- |" * (len(_GATE) + 1),
            ]
            for at in gate.points:
                row(_gate_title(at), (_cell(getattr(at, key)) for key in _GATE))
        return "\n".join(lines)

    def _by_class(self) -> list[tuple[str, list[list[float | None] | None]]]:
        """Where several classes were forgotten: the head's shares for each, by model."""
        if len(self.forget) < 2 or self.models["model"].by_class is None:
            return []
        each = [result.by_class for result in self.models.values()]
        return [(name, [by[index] if by else None for by in each]) for index, name in enumerate(self.forget)]

    def _names(self, gate: GateCurve) -> str:
        """The classes of a remap, those by name that the evaluation is of."""
        names = dict(zip(self.forget_labels, self.forget, strict=True))
        return ", ".join(names.get(label, f"class {label}") for label in gate.labels)

    def eval_results(self) -> list[EvalResult]:
        """For a model card's `model-index`: the numbers of the model under test, each named for what it is."""
        result = self.models["model"]
        named = {f"head {title.split()[0]}": getattr(result.accuracies, key) for key, title in ROWS.items()}
        for probe, retention in result.retention.items():
            named |= {f"KR ({probe}) {title.split()[0]}": retention.mean[key] for key, title in ROWS.items()}
        return [
            EvalResult(
                task_type="image-classification",
                dataset_type=self.dataset_id or "images",
                dataset_name=self.dataset_id or Path(self.dataset).name,
                metric_type="kr_score" if name.startswith("KR") else "accuracy",
                metric_name=f"{name} (%)",
                metric_value=round(value, 2),
            )
            for name, value in named.items()
            if value is not None
        ]


def escaped(text: str) -> str:
    """Text as itself in Markdown and HTML, in one line: a label can hold anything."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#+!|~$:-])", r"\\\1", text)


def _cell(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _gate_title(point: GatePoint) -> str:
    title = "argmax" if point.threshold is None else f"threshold {point.threshold:g}"
    return f"{title} (in force)" if point.in_force else title


def _gates(values: Any) -> list[GateCurve] | None:
    if values is None:
        return None
    gates = [GateCurve(**gate | {"points": [GatePoint(**point) for point in gate["points"]]}) for gate in values]
    for gate in gates:
        numbers: list[Any] = [getattr(point, key) for point in gate.points for key in _GATE]
        numbers += [*gate.labels, *(point.threshold for point in gate.points if point.threshold is not None)]
        if not all(isinstance(number, int | float) for number in numbers):
            raise ValueError("its gates are none")
    return gates


def _result(values: Mapping[str, Any]) -> ModelResult:
    if not set(values["retention"]) <= set(_PROBES):
        raise ValueError(f"its probes are {sorted(values['retention'])}")
    if strange := set(values["attacks"] or ()) - set(MEANINGS):
        raise ValueError(f"its attacks are {sorted(strange)}")
    numbers = [*values["accuracies"].values()]
    for retention in values["retention"].values():
        numbers += [*retention["mean"].values(), *retention["spread"].values()]
    for train, test in values.get("by_class") or []:  # reports that were written before have none
        numbers += [train, test]
    if any(number is not None and not isinstance(number, int | float) for number in numbers):
        raise ValueError("its numbers are none")
    return ModelResult(
        accuracies=Accuracies(**values["accuracies"]),
        retention={probe: Retention(**retention) for probe, retention in values["retention"].items()},
        curve=[CurvePoint(**point) for point in values["curve"]] if values["curve"] is not None else None,
        membership=MembershipInference(**values["membership"]) if values["membership"] is not None else None,
        zrf=ZeroRetrainForgetting(**values["zrf"]) if values["zrf"] is not None else None,
        attacks=_attacks(values["attacks"]),
        by_class=values.get("by_class"),
    )


def _attacks(values: Mapping[str, Any] | None) -> dict[str, AttackResult | None] | None:
    if values is None:
        return None
    return {name: None if result is None else AttackResult(**result) for name, result in values.items()}
