"""What an evaluation found: one value, the numbers that follow from it, and its JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..errors import DataError
from .accuracy import Accuracies
from .attacks import MEANINGS, AttackResult
from .differences import average_gap
from .gate import GateCurve, GatePoint
from .knowledge_retention import CurvePoint
from .membership import MembershipInference
from .probes import PROBES
from .report_check import check_values, report_sha256
from .zrf import ZeroRetrainForgetting

_SCHEMA = 2
# The measured numbers of a point of a gate's curve; a threshold may be None.
_GATE_NUMBERS = [each.name for each in fields(GatePoint) if each.name not in ("threshold", "in_force")]


@dataclass(frozen=True)
class Retention:
    """
    What a probe reads from the features of a network, over its seeds.

    Args:
        mean (`dict[str, float | None]`): The numbers of [`Accuracies`], in %. All None where the probe is `constant`.
        spread (`dict[str, float | None]`): Their standard deviations.
        runs (`int`): Number of seeds.
        settings (`dict`): Settings of the probe, whether it converged, and whether it is `constant`, as in
            [`KnowledgeRetention`].
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
        accuracies ([`Accuracies`]): The accuracies of its own head.
        retention (`dict[str, Retention]`): What each probe reads, by the probe's name.
        curve (`list[CurvePoint]`, *optional*): The KR curve.
        membership ([`MembershipInference`], *optional*): Forget images of the training split against the test split.
        zrf ([`ZeroRetrainForgetting`], *optional*): How close the logits are to the random network's.
        attacks (`dict[str, AttackResult | None]`, *optional*): By name. None in place of an attack that cannot be made
            on this model.
        by_class (`list[list[float | None]]`, *optional*): \(D_f\) and \(D_{ft}\) of its own head for each forgotten
            class, in the order of the report's `forget`, so that a class that stays does not hide behind others that
            went. None where single images were forgotten.
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
    What [`evaluate_unlearning`] found. [`report_text`][hf_esc.evaluation.report_text] puts it into words.

    Args:
        model, dataset (`str`): What was evaluated, and on what.
        forget (`list[str]`): Names of the forgotten classes; empty where single images were forgotten.
        forget_labels (`list[int]`): Their indices in the model.
        num_forget_train, num_forget_test (`int`): Number of forget images in each split.
        method (`list[str]`): The methods in the model's ledger.
        seeds (`list[int]`): Seeds of the probes and of membership inference.
        models (`dict[str, ModelResult]`): The model under test (`model`), and its references.
        left_out (`list[str]`): Names of the classes that were also erased and count neither as forgotten nor as
            retained.
        dataset_id (`str`, *optional*): The data set's id on the Hub, if it came from there.
        projection_sha256 (`str`, *optional*): Fingerprint of the projection, from the ledger of the erased model.
        weights_sha256 (`str`, *optional*): Fingerprint of the weights inside an erased model, or of edited weights.
        random_seed (`int`, *optional*): Seed of the random network's weights; None where the caller gave the network.
        gates (`list[GateCurve]`, *optional*): For each remap in the model, what its gate finds, and what it would find
            with other thresholds. None for a model without a remap.
        versions (`dict[str, str]`): Versions of the libraries.
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
        The recovery rate of Fig. 1 of the paper: the share of the forget training images that a probe gets right, in %
        of the share that the original's head gets right. None without an original, or where its head gets none right.
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

        Below 0, a probe reads less than from a model that has never seen the class. None unless both references are
        there and more is read from the original, by more than one point: otherwise the ratio says nothing, or has the
        wrong sign. Where there are no forget test images, forget training images take their place. Where two or more
        classes were forgotten, KR is the share of images that are taken for any of them.
        """
        own, of_any = ("forget_test", "any_test") if self.num_forget_test else ("forget_train", "any_train")
        values = []
        for column in (name, "retrain", "original"):
            result = self.models.get(column)
            read = result.retention[probe].mean if result is not None else {}
            value = read.get(own) if read.get(of_any) is None else read[of_any]
            if value is None:
                return None
            values.append(value)
        found, retrain, original = values
        return (found - retrain) / (original - retrain) if original - retrain > 1 else None

    def average_gap(self, name: str = "model") -> float | None:
        """
        Avg Gap of Table 5 of the paper: the mean distance from the retrained model, in points, of the head's
        accuracies and of membership inference. Where random images were forgotten, the accuracies are those on forget,
        retain and test images, as in the paper. Where classes were forgotten, forget and retain test images count
        each.

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
        """
        Plain values, with `average_gap` and, by probe, `recovery_rate` and `excess_knowledge`, and under `sha256` a
        fingerprint of all of them.
        """
        probes = list(self.models["model"].retention)
        values = {
            "schema": _SCHEMA,
            **asdict(self),
            "recovery_rate": {probe: self.recovery_rate(probe) for probe in probes},
            "excess_knowledge": {probe: self.excess_knowledge(probe) for probe in probes},
            "average_gap": self.average_gap(),
        }
        return values | {"sha256": report_sha256(values)}

    def to_json(self) -> str:
        """[`UnlearningReport.to_dict`] as JSON."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_json(cls, text: str) -> UnlearningReport:
        """
        The report that [`UnlearningReport.to_json`] wrote.

        Raises:
            DataError: If `text` is not such a report, a number in it is no possible one, or its values were changed
                since it was written.
        """
        try:
            values = json.loads(text)
            # One without a fingerprint is of before reports had one.
            if values["schema"] != _SCHEMA or "sha256" not in values:
                raise ValueError("it is of another version, so evaluate the model again")
            check_values(values)
            if report_sha256(values) != values.pop("sha256"):
                raise ValueError("its values were changed since it was written, so evaluate the model again")
            values.pop("schema")
            for derived in ("recovery_rate", "excess_knowledge", "average_gap"):
                values.pop(derived)
            values["models"] = {name: _result(result) for name, result in values["models"].items()}
            values["gates"] = _gates(values["gates"])
            if "model" not in values["models"]:
                raise ValueError("it is of no model")
            each = [result.by_class for result in values["models"].values() if result.by_class is not None]
            if any(len(shares) != len(values["forget"]) for shares in each):
                raise ValueError("its classes are not those that it names")
            return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"This is no report of hf_esc: {type(error).__name__}: {error}") from error


def _gates(values: Any) -> list[GateCurve] | None:
    if values is None:
        return None
    gates = [GateCurve(**gate | {"points": [GatePoint(**point) for point in gate["points"]]}) for gate in values]
    for gate in gates:
        numbers: list[Any] = [getattr(point, key) for point in gate.points for key in _GATE_NUMBERS]
        numbers += [*gate.labels, *(point.threshold for point in gate.points if point.threshold is not None)]
        if not all(isinstance(number, int | float) for number in numbers):
            raise ValueError("its gates are none")
    return gates


def _result(values: Mapping[str, Any]) -> ModelResult:
    if not set(values["retention"]) <= set(PROBES):
        raise ValueError(f"its probes are {sorted(values['retention'])}")
    if strange := set(values["attacks"] or ()) - set(MEANINGS):
        raise ValueError(f"its attacks are {sorted(strange)}")
    if any(len(pair) != 2 for pair in values["by_class"] or []):
        raise ValueError("its shares of each class are none")
    return ModelResult(
        accuracies=Accuracies(**values["accuracies"]),
        retention={probe: Retention(**retention) for probe, retention in values["retention"].items()},
        curve=[CurvePoint(**point) for point in values["curve"]] if values["curve"] is not None else None,
        membership=MembershipInference(**values["membership"]) if values["membership"] is not None else None,
        zrf=ZeroRetrainForgetting(**values["zrf"]) if values["zrf"] is not None else None,
        attacks=_attacks(values["attacks"]),
        by_class=values["by_class"],
    )


def _attacks(values: Mapping[str, Any] | None) -> dict[str, AttackResult | None] | None:
    if values is None:
        return None
    return {name: None if result is None else AttackResult(**result) for name, result in values.items()}
