"""A report that somebody edited is refused, and so is one of another model."""

import functools
import json
import math
from dataclasses import replace

import pytest

from hf_esc.errors import CheckpointError, DataError, HubError
from hf_esc.evaluation.knowledge_retention import CurvePoint
from hf_esc.evaluation.report import UnlearningReport
from hf_esc.evaluation.report_check import misfit, report_sha256
from hf_esc.hub.card import card_text

from .test_card import SHA, configuration, gate, ledger, parts, report, section

NO_SHARES = {"settings", "meaning", "base", "images", "threshold", "in_force"}
COUNTS = {"runs", "members", "nonmembers", "drawn", "labelled", "labels", "num_forget_train", "num_forget_test"}


def whole() -> UnlearningReport:
    """With all that a report can hold."""
    models = report().models
    rich = replace(models["model"], curve=[CurvePoint(1, 20.0, 30.0, 0.5)], by_class=[[1.0, 2.0]])
    return report(models=models | {"model": rich}, gates=[gate([1], 2.5)])


def test_a_report_of_before_the_fingerprint_is_of_another_version():
    for schema in (1, 2):
        values = whole().to_dict() | {"schema": schema}
        del values["sha256"]
        with pytest.raises(DataError, match="it is of another version, so evaluate the model again"):
            UnlearningReport.from_json(json.dumps(values))


def places_of(values, place=()):
    """The place of each value that is no list, no mapping and not None."""
    if isinstance(values, dict | list):
        for key in values if isinstance(values, dict) else range(len(values)):
            yield from places_of(values[key], (*place, key))
    elif values is not None:
        yield place


def changed(values, place, value, *, seal: bool) -> str:
    """The report with another value in one place, with a fingerprint that was written for it or the old one."""
    values = json.loads(json.dumps(values))
    *inside, key = place
    functools.reduce(lambda held, name: held[name], inside, values)[key] = value
    return json.dumps(values | ({"sha256": report_sha256(values)} if seal else {}))


def test_a_report_with_one_value_changed_is_refused():
    """Whatever the value, also one that follows from others; another value may be as possible as the old one."""
    values = json.loads(whole().to_json())
    assert UnlearningReport.from_json(json.dumps(values)) == whole()
    places = list(places_of(values))
    assert len(places) > 100
    for place in places:
        old = functools.reduce(lambda held, name: held[name], place, values)
        other = f"{old}x" if isinstance(old, str) else not old if isinstance(old, bool) else old + 1
        with pytest.raises(DataError, match="no report of hf_esc"):
            UnlearningReport.from_json(changed(values, place, other, seal=False))


@pytest.mark.parametrize("number", [-5, 250, math.nan, math.inf, "<img src=x>", True])
def test_a_number_that_is_no_share_is_refused_wherever_it_stands(number):
    """Also where somebody wrote a fingerprint for it."""
    values = json.loads(whole().to_json())
    tried = 0
    for place in places_of(values):
        if place[0] not in ("models", "gates") or NO_SHARES & set(place):
            continue
        if number == 250 and COUNTS & set(place):
            continue
        tried += 1
        with pytest.raises(DataError, match="no report of hf_esc"):
            UnlearningReport.from_json(changed(values, place, number, seal=True))
    assert tried > 80


def test_numbers_that_are_none_do_not_reach_a_card():
    """Of a report that was made by hand and never written."""
    for number in (-5.0, 250.0, math.nan, "<img src=x>"):
        accuracies = replace(report().models["model"].accuracies, forget_test=number)
        models = report().models | {"model": replace(report().models["model"], accuracies=accuracies)}
        with pytest.raises(HubError, match=r"The evaluation was not measured: .*Evaluate the model again"):
            card_text(configuration(), report=report(models=models))


HTML = "<img src=x onerror=alert(1)>"


@pytest.mark.parametrize("key", ledger()[0])
def test_nothing_in_a_ledger_is_markup_on_a_card(key):
    """A value of the wrong kind is refused; one that is text anyhow is shown as text."""
    try:
        card = card_text(configuration([ledger()[0] | {key: HTML}]), repo_id="me/no-dogs", report=report())
    except CheckpointError:
        return
    assert "<" not in section(card).replace("&lt;", "")
    assert HTML not in str(parts(card)[0])


@pytest.mark.parametrize("key", ["dataset", "dataset_id", "forget", "left_out", "method", "versions", "models"])
def test_nothing_in_a_report_is_markup_on_a_card(key):
    values = {"forget": [HTML], "left_out": [HTML], "method": [HTML], "versions": {HTML: HTML}}
    values["models"] = report().models | {HTML: report().models["model"]}
    made = report(**{key: values.get(key, HTML)})
    card = card_text(configuration(), repo_id=HTML, report=made)
    assert "<" not in section(card).replace("&lt;", "")


OTHERS = {
    "another projection": {"projection_sha256": "0" * 64},
    "other weights": {"weights_sha256": "0" * 64},
    "another method": {"method": ["delete"]},
    "another class": {"forget": ["cat"], "forget_labels": [0]},
    "the name of another class": {"forget": ["cat"]},
    "a class that is not there": {"forget": ["x"], "forget_labels": [9]},
    "a class left out that was not erased": {"left_out": ["bird"]},
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_report_of_another_model_or_class_does_not_fit(what):
    config = configuration(ledger()[:1])
    own = report(method=["esc"], left_out=[], weights_sha256=SHA)
    assert misfit(own, config, SHA) is None
    assert misfit(replace(own, **OTHERS[what]), config, SHA)


def test_a_class_that_was_erased_too_and_is_told_nowhere_does_not_fit():
    both = configuration([ledger()[0] | {"labels": ["dog", "bird"], "label_ids": [1, 2]}])
    own = report(method=["esc"], left_out=["bird"], weights_sha256=SHA)
    assert misfit(own, both, SHA) is None
    assert misfit(replace(own, left_out=[]), both, SHA)
