"""The card of an erased model: whole, valid, no one's own words lost, and no label can break it."""

import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from transformers import ViTConfig

from hf_esc.errors import HubError
from hf_esc.evaluation import Accuracies, report_text
from hf_esc.evaluation.attacks import MEANINGS, AttackResult
from hf_esc.evaluation.gate import GateCurve, GatePoint
from hf_esc.evaluation.markdown import escaped
from hf_esc.evaluation.membership import MembershipInference
from hf_esc.evaluation.report import ModelResult, Retention, UnlearningReport
from hf_esc.evaluation.zrf import ZeroRetrainForgetting
from hf_esc.hub.card import BEGIN, END, TAGS, card_text
from hf_esc.modeling.configuration_esc import ESCConfig

from .hub import card_errors
from .pictures import NAMES

# The card of `ledger()` and `report()`, to be read by a person. After a change that is meant:
#     python -m tests.test_card
GOLDEN = Path(__file__).with_name("golden_card.md")
SHA = "0123456789abcdef" * 4


def ledger(labels: Sequence[str] = ("dog",), **settings) -> list[dict]:
    """Two erasures: ESC of some classes, and ESC-T of images without labels."""
    common = {
        "kind": "in_front",
        "projection_sha256": SHA,
        "base_sha256": SHA,
        "base": "google/tiny-vit",
        "base_revision": "4" * 40,
    }
    first = {"method": "esc", "p": 1.5, "rank": 2, "per_class": True, "labels": list(labels), "label_ids": [1]}
    first |= {
        "right_after_by_label": [0.05],
        "unchanged": 0.025,
        "unchanged_of": 120,
        "num_images": 120,
        "date": "2026-01-02T03:04:05+00:00",
    }
    second = {"method": "esc-t", "tau": 0.7, "tolerance": 0.02, "steps": 17, "labels": None, "label_ids": None}
    second |= {"num_images": 30, "unchanged": None, "unchanged_of": 30, "date": "2026-02-03T04:05:06+00:00"}
    return [common | first, common | second | settings]


def configuration(erasures: list[dict] | None = None, names: Sequence[str] = NAMES) -> ESCConfig:
    base = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, id2label=dict(enumerate(names)))
    sites = [{"modules": ["classifier"], "dim": 8, "axis": -1}]
    factors = [[{"type": "low_rank", "rank": 2}]]
    return ESCConfig(base, sites=sites, factors=factors, erasures=ledger() if erasures is None else erasures)


def result(start: float) -> ModelResult:
    """Numbers that are all different: accuracies `start`, `start` + 1, …"""
    keys = ("forget_train", "retain_train", "forget_test", "retain_test", "hm_train", "hm_test")

    def accuracies(first):
        return {key: first + place for place, key in enumerate(keys)}

    def retention(first, runs):
        return Retention(accuracies(first), dict.fromkeys(keys, 0.5), runs, {"converged": True})

    return ModelResult(
        accuracies=Accuracies(**accuracies(start)),
        retention={"paper": retention(start + 6, 3), "converged": retention(start + 12, 1)},
        membership=MembershipInference(51.0, 1.0, start + 18, None, 120, 40, 40),
        zrf=ZeroRetrainForgetting((start + 19) / 100, 2, 120),
        attacks={"knn": AttackResult(start + 20, start + 21, MEANINGS["knn"]), "strip": None},
    )


def report(**changes) -> UnlearningReport:
    """A report made by hand, of the last erasure of `ledger()`."""
    names = ("model", "original", "retrain", "random")
    made = UnlearningReport(
        model="/home/somebody/erased",
        dataset="/home/somebody/pictures",
        forget=["dog"],
        forget_labels=[1],
        num_forget_train=120,
        num_forget_test=40,
        method=["esc", "esc-t"],
        seeds=[0, 1, 2],
        models={name: result(25.0 * place) for place, name in enumerate(names)},
        left_out=["bird"],
        projection_sha256=SHA,
        random_seed=0,
        versions={"hf_esc": "1.0"},
    )
    return replace(made, **changes)


def parts(card: str) -> tuple[dict, str]:
    """Metadata and the rest of a card."""
    match = re.fullmatch(r"---\n(.*?)\n---\n\n(.*)", card, re.DOTALL)
    return yaml.safe_load(match[1]), match[2]


def section(card: str) -> str:
    """What stands between the marks."""
    _, text = parts(card)
    assert (text.count(BEGIN), text.count(END)) == (1, 1)
    return text.split(BEGIN)[1].split(END)[0]


def rows(card: str) -> list[list[str]]:
    """The cells of every line of a table, as GitHub reads them."""
    lines = [line for line in section(card).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def golden() -> str:
    return card_text(configuration(), repo_id="me/no-dogs", report=report(), figure="figures/retention.png")


# The whole of it.


def test_the_whole_card():
    """If a change is meant, read the new card: `python -m tests.test_card`, then `git diff tests/golden_card.md`."""
    assert golden() == GOLDEN.read_text(encoding="utf-8")


def test_its_metadata_is_what_the_hub_reads():
    made = report(dataset_id="me/pictures")
    card = card_text(configuration(), repo_id="me/no-dogs", report=made, license="mit", language="en", tags="animals")
    assert card_errors(card) == []
    data = ModelCard(card).data
    assert data.base_model == "google/tiny-vit"
    assert data.base_model_relation == "finetune"
    assert (data.library_name, data.pipeline_tag) == ("hf_esc", "image-classification")
    assert (data.license, data.language, data.datasets) == ("mit", "en", ["me/pictures"])
    assert data.metrics == ["accuracy", "kr_score"]
    assert data.tags == [*TAGS, "animals"]
    name, results = model_index_to_eval_results(parts(card)[0]["model-index"])
    assert name == "no-dogs"
    found = {entry.metric_name: entry.metric_value for entry in results}
    assert found == {entry.metric_name: entry.metric_value for entry in report_text.eval_results(made)}
    assert len(found) == 18  # six of the head and of each of two probes
    assert (found["head D_ft (%)"], found["KR (paper) D_ft (%)"], found["KR (converged) D_ft (%)"]) == (2, 8, 14)
    assert {(entry.dataset_name, entry.task_type) for entry in results} == {("me/pictures", "image-classification")}
    assert {entry.metric_type for entry in results} == {"accuracy", "kr_score"}


def test_no_path_of_a_data_set_is_on_it():
    card = card_text(configuration(), repo_id="me/no-dogs", report=report())
    assert "somebody" not in card
    assert "on pictures (" in card


def test_without_a_report_it_says_not_evaluated_and_no_number():
    card = card_text(configuration(), repo_id="me/no-dogs")
    assert "Not evaluated." in section(card)
    assert "not measured here" in section(card)
    metadata, _ = parts(card)
    assert not {"model-index", "metrics", "datasets"} & set(metadata)
    assert card_errors(card) == []
    assert "retention.png" not in card


def test_both_probes_and_every_reference_are_in_the_table():
    table = {row[0]: row[1:] for row in rows(golden())[4:]}
    [header] = [row for row in rows(golden()) if "this model" in row]
    assert header == ["", "this model", "original", "retrain", "random"]
    starts = {"head": 0, "KR, the paper's probe (ten epochs, not trained to the end)": 6, "KR, a converged": 12}
    for start, first in starts.items():
        [training, test] = [cells for title, cells in table.items() if title.startswith(start)]
        for column in range(4):
            number = 25.0 * column + first
            assert training[column] == f"{number:.2f} / {number + 1:.2f}"
            assert test[column] == f"{number + 2:.2f} / {number + 3:.2f}"
    assert table["membership inference, AUC"] == ["18.00", "43.00", "68.00", "93.00"]
    [strip] = [cells for title, cells in table.items() if "`strip`" in title]
    assert strip == ["-"] * 4


def test_who_can_get_it_back_is_said_with_the_numbers_of_the_report():
    text = section(golden())
    assert "the head gets 2.0 % of the forget test images right, and 27.0 % before." in text
    assert "a converged linear probe gets 14.0 % of them right, and 39.0 % from the original's features." in text
    assert "hidden_states` and `attentions` bypass the projection" in text
    rows_forgotten = card_text(configuration(), report=report(num_forget_test=0, forget=[], forget_labels=[]))
    assert "the head gets 0.0 % of the forget training images right" in section(rows_forgotten)


REMAP = {"method": "remap", "bank_size": 1500, "gate": "argmax", "labels": ["dog"], "label_ids": [1], "rank": None}
WHO = "sees predictions: yes; queries features: yes, within the measured bound; holds the file: no (strips the gate)"
BANK = ("feature vectors of retain images", "A bank of public pictures is offered for that reason", "--retain DATA")


def gate(labels, missed: float) -> GateCurve:
    argmax = GatePoint(None, False, 90.0, 80.0, 1.0, 2.0, 70.0)
    return GateCurve(labels, [argmax, replace(argmax, threshold=0.25, in_force=True, recall_test=100 - missed)])


def test_of_a_remap_it_says_from_whom_it_hides_and_what_the_file_carries():
    config = configuration([ledger()[0] | REMAP])
    text = " ".join(section(card_text(config)).split())
    assert f"hidden from somebody who {WHO}." in text
    assert "what the gate misses, which was not measured here." in text
    assert "The file carries 1500 feature vectors of retain images" in text
    assert all(words in text for words in BANK)
    two = configuration([ledger()[0] | REMAP, ledger()[0] | REMAP])
    assert "The file carries 3000 feature vectors" in card_text(two)
    measured = card_text(two, report=report(gates=[gate([1], 2.5), gate([0, 2], 12.0)]))
    assert "what the gate misses: 2.5 % and 12.0 % of the forget test images." in measured
    assert card_errors(measured) == []


def test_of_an_erasure_without_a_remap_it_does_not():
    for made in (None, report()):
        text = card_text(configuration(), report=made)
        assert not any(words in text for words in ("The gate", "strips the gate", "retain images", "public pictures"))


def test_the_docs_say_the_same_of_a_remap():
    docs = Path(__file__).parents[1] / "docs"
    threat = (docs / "concepts" / "threat-model.md").read_text(encoding="utf-8")
    assert WHO in threat
    works = (docs / "concepts" / "how-remap-works.md").read_text(encoding="utf-8")
    for line in ("| sees predictions | yes |", "| queries features | yes, within the measured bound |"):
        assert line in works
    assert "| holds the file | no (strips the gate) |" in works
    for page in (threat, works):
        assert all(words in page for words in BANK)


def test_the_gate_is_a_table_of_the_card():
    made = report(gates=[gate([1, 2], 7.5)])
    card = card_text(configuration([ledger()[0] | REMAP]), report=made)
    assert "The gate of the remap of dog, class 2, in %." in section(card)
    start = rows(card).index(["", "found, train", "found, test", "alarms, train", "alarms, test", "head, D_rt"])
    assert rows(card)[start + 2 : start + 4] == [
        ["argmax", "90.00", "80.00", "1.00", "2.00", "70.00"],
        ["threshold 0.25 (in force)", "90.00", "92.50", "1.00", "2.00", "70.00"],
    ]


def test_an_erasure_that_is_incomplete_is_called_so():
    assert "hidden from the head" in section(card_text(configuration()))
    old = {"right_after_by_label": None}  # records of before have the share that is unchanged alone
    for record in (
        {"unchanged": 0.95} | old,
        {"unchanged": 0.05, "unchanged_by_label": [0.02, 0.4]} | old,
        {"unchanged": 0.0, "right_after_by_label": [0.02, 0.4]},
    ):
        text = section(card_text(configuration([ledger()[0] | record])))
        assert "**The erasure is incomplete**" in text
        assert "hidden from the head" not in text
    models = report().models
    accuracies = replace(models["model"].accuracies, forget_test=60.0)
    read = report(models=models | {"model": replace(models["model"], accuracies=accuracies)})
    assert "**The erasure is incomplete**" in section(card_text(configuration(), report=read))
    # One class that stays does not hide behind others.
    for shares, incomplete in (([[0.0, 0.0], [0.0, 30.0]], True), ([[0.0, 0.0], [0.0, 3.0]], False)):
        read = report(
            models=models | {"model": replace(models["model"], by_class=shares)},
            forget=["cat", "dog"],
            forget_labels=[0, 1],
        )
        assert ("**The erasure is incomplete**" in section(card_text(configuration(), report=read))) is incomplete
        assert any(
            line[:2] == ["head on dog alone: training / test images", f"0.00 / {shares[1][1]:.2f}"]
            for line in rows(card_text(configuration(), report=read))
        )


def test_images_of_classes_that_stay_are_no_incomplete_erasure():
    record = ledger()[0] | {"scenario": "images", "labels": None, "label_ids": None, "unchanged": 0.95}
    text = card_text(configuration([record]))
    assert "The erasure is incomplete" not in section(text)
    assert "| single images | ESC |" in section(text)


def test_every_erasure_is_a_row():
    first, second = rows(golden())[2:4]
    assert first == ["dog", "ESC", "p 1.5, rank 2, per\\_class True", "120", "2.5 % of 120", "5.0 %", "2026\\-01\\-02"]
    assert second == [
        "images without labels",
        *("ESC-T", "tau 0.7, tolerance 0.02, steps 17", "30", "not known", "not known", "2026\\-02\\-03"),
    ]


# What is there already.

OWN = """---
license: other
license_name: mine
license_link: https://example.org/license
language:
- en
- de
library_name: transformers
pipeline_tag: image-classification
tags:
- animals
- esc
base_model_relation: quantized
inference: false
widget:
- src: https://example.org/a.png
  example_title: 'A: "dog"'
metrics:
- f1
datasets:
- me/other
model-index:
- name: mine
  results:
  - task:
      type: image-classification
    dataset:
      type: me/other
      name: Other pictures
    metrics:
    - type: f1
      value: 0.5
      name: F1
---

# My own title

Words of mine, | with | pipes --- and {{ braces }}.

## Ethics

As ever.
"""


def test_what_a_person_wrote_stays():
    card = card_text(configuration(), repo_id="me/no-dogs", report=report(), existing=OWN)
    metadata, text = parts(card)
    before, own_text = parts(OWN)
    kept = {"license", "license_name", "license_link", "language", "base_model_relation", "inference", "widget"}
    assert {key: metadata[key] for key in kept} == {key: before[key] for key in kept}
    assert metadata["tags"] == ["animals", "esc", "machine-unlearning", "concept-erasure"]
    assert metadata["metrics"] == ["f1", "accuracy", "kr_score"]
    assert metadata["datasets"] == ["me/other"]
    [index] = metadata["model-index"]
    assert index["name"] == "mine"
    assert index["results"][0] == before["model-index"][0]["results"][0]
    assert len(index["results"]) == 2
    assert text.startswith(own_text.rstrip())
    assert text.rstrip().endswith(END)
    assert card_errors(card) == []


def test_words_before_and_after_the_section_stay_where_they_are():
    card = card_text(configuration(), existing=OWN).replace(END, f"{END}\n\n## After\n\nMore words of mine.")
    again = card_text(configuration(ledger(["cat"])), report=report(), existing=card)
    before, after = card.split(BEGIN)[0].split("---\n\n")[1], card.split(END)[1]
    assert again.split(BEGIN)[0].split("---\n\n")[1] == before
    assert again.split(END)[1] == after
    assert "More words of mine." in after
    assert "forget cat," in section(again)
    assert "dog" not in section(again).split("## What is left")[0]


@pytest.mark.parametrize(
    "existing", [None, OWN, "# A card\n\nwithout metadata\n", "---\nlicense: mit\n---\n"], ids=repr
)
@pytest.mark.parametrize("made", [None, report()], ids=["without a report", "with a report"])
def test_twice_is_once(existing, made):
    options = {"repo_id": "me/no-dogs", "report": made, "tags": ["a", "b"]}
    once = card_text(configuration(), existing=existing, **options)
    assert card_text(configuration(), existing=once, **options) == once
    assert (once.count(BEGIN), once.count(END)) == (1, 1)


def test_numbers_of_an_earlier_report_go_and_a_persons_own_stay():
    card = card_text(configuration(), report=report(), existing=OWN)
    [index] = parts(card_text(configuration(), existing=card))[0]["model-index"]
    assert index == parts(OWN)[0]["model-index"][0]
    card = card_text(configuration(), report=report())
    assert "model-index" not in parts(card_text(configuration(), existing=card))[0]


def test_a_card_without_marks_gets_the_section_at_its_end():
    card = card_text(configuration(), existing="# A card\n\nwithout metadata\n")
    assert parts(card)[1].startswith("# A card\n\nwithout metadata\n\n" + BEGIN)


@pytest.mark.parametrize("key", ["license", "language"])
def test_what_is_passed_overrides_what_is_there(key):
    value = {"license": "mit", "language": "fr"}[key]
    assert parts(card_text(configuration(), existing=OWN, **{key: value}))[0][key] == value


@pytest.mark.parametrize(
    "metadata",
    [
        "license: [mit",
        "- a\n- list",
        "just words",
        "model-index: 3",
        "model-index:\n- name: a\n  results: 7",
        "a: !!x y",
    ],
)
def test_a_card_whose_metadata_cannot_be_read_is_not_written_over(metadata):
    with pytest.raises(HubError, match=r"(?s)README\.md that is there cannot be read.*Mend"):
        card_text(configuration(), existing=f"---\n{metadata}\n---\n\n# Mine\n")


def test_a_persons_result_whose_name_begins_like_ours_stays():
    own = OWN.replace("name: F1", "name: head count error")
    [index] = parts(card_text(configuration(), existing=own))[0]["model-index"]
    assert index == parts(own)[0]["model-index"][0]


# What a label can hold.

HOSTILE = [
    "a | b || c \\| d",
    "line\nbreak\r\nand\ttab\u2028and\x85more",
    "---\nlicense: mit\n---",
    "<script>alert(1)</script><img src=x onerror=y>",
    "{{ 7 * 7 }}{% for x in y %}{# z #}",
    "`code` ``` ~~~ $x$",
    "[link](javascript:x) ![image](https://example.org/x.png) <https://example.org>",
    f"{END} {BEGIN} --> <!--",
    "../../etc/passwd",
    "# heading * bold __ under &lt; &#60;",
    "'\": - ? ! & * yes null 1e3 @ %",
    "\x00\x07\x1b[31m\u202e",
    "",
    "  ",
]
# A failing card takes minutes to shrink, and is read as it is.
quick = settings(phases=[Phase.explicit, Phase.generate])
hostile = st.sampled_from(HOSTILE) | st.text(max_size=30) | st.text("|<>`\\{}%-#\n\"':&!~[]() a", max_size=20)


def assert_whole(card: str, values: dict | None = None) -> None:
    """The metadata is read as it was written, tables keep their shape, nothing is markup, and the marks are there."""
    metadata, text = parts(card)
    assert card_errors(card) == []
    assert ModelCard(card).data.to_dict() == metadata
    assert values is None or {key: metadata.get(key) for key in values} == values
    body = section(card)
    assert "<" not in body.replace("&lt;", "")
    assert {len(row) for row in rows(card)[:4]} == {7}
    assert {len(row) for row in rows(card)[4:]} <= {5}
    assert [line for line in text.splitlines() if re.match("#+ ", line)][1:] == [
        f"## {heading}"
        for heading in ("What was erased", "What is left of it", "Who can still get it back", "Use it", "Check it")
    ] + ["## Citation"]
    assert body.count("```") == 6


def rendered(card: str) -> str:
    """The section as HTML, by the rules of GitHub's tables."""
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable("table").render(section(card))


@pytest.mark.slow
@quick
@given(st.lists(hostile, min_size=1, max_size=3), hostile, hostile, hostile)
@example(HOSTILE, "esc | t", "x`|`", "/")
def test_no_label_method_or_data_set_breaks_it(labels, method, date, dataset):
    """`{{ }}`, `<script>`, pipes, `---`, new lines or the end mark are words on the card, in one cell."""
    pytest.importorskip("markdown_it")
    made = report(dataset=f"/x/{dataset}", left_out=labels)
    erasures = ledger(labels, method=method, date=date)
    card = card_text(configuration(erasures), repo_id="me/no-dogs", report=made)
    assert_whole(card, {"base_model": "google/tiny-vit", "library_name": "hf_esc"})
    html = rendered(card)
    assert (html.count("<table>"), html.count("<tr>")) == (2, 3 + len(report_text.markdown(made).splitlines()) - 1)
    assert re.findall(r"<td[ >]", html).__len__() == 2 * 7 + 5 * (len(report_text.markdown(made).splitlines()) - 2)
    kinds = set(re.findall(r"<(\w+)", html))
    assert kinds <= {"p", "strong", "h2", "table", "thead", "tbody", "tr", "th", "td", "a", "code", "pre", "ul", "li"}
    assert re.findall(r'href="([^"]*)"', html) == ["https://huggingface.co/google/tiny-vit"]


@quick
@given(hostile)
@example("dog | cat")
def test_escaped_text_is_read_as_it_was(text):
    markdown_it = pytest.importorskip("markdown_it")
    html = markdown_it.MarkdownIt("commonmark").enable("table").render(f"| a |\n| --- |\n| x{escaped(text)}x |\n")
    [cell] = re.findall(r"<td>(.*)</td>", html)
    for code, character in {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&amp;": "&"}.items():
        cell = cell.replace(code, character)
    expected = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    assert cell.split() == f"x{expected}x".split()


@quick
@given(hostile, hostile, st.lists(hostile.filter(bool), max_size=2))
def test_metadata_comes_back_whatever_is_in_it(dataset, note, tags):
    """Of a person's card with any words in its metadata: they are the same after two pushes."""
    own = "---\n" + yaml.safe_dump({"note": note or "x", "tags": tags, "deep": {"a": [note]}}) + "---\n\n# Mine\n"
    made = report(dataset=f"/x/{dataset}")
    card = card_text(configuration(), report=made, existing=own)
    card = card_text(configuration(), report=made, existing=card)
    metadata, _ = parts(card)
    assert (metadata["note"], metadata["deep"]) == (note or "x", {"a": [note]})
    assert metadata["tags"] == list(dict.fromkeys([*tags, *TAGS]))
    _, found = model_index_to_eval_results(metadata["model-index"])
    assert {entry.dataset_name for entry in found} == {Path(f"/x/{dataset}").name}
    assert_whole(card)


def test_no_name_of_a_reference_breaks_it():
    models = {**report().models, "a | <b>": result(60.0)}
    card = card_text(configuration(), report=report(models=models))
    assert {len(row) for row in rows(card)[4:]} == {6}
    assert "<" not in section(card).replace("&lt;", "")


def test_a_report_that_was_written_and_read_makes_the_same_card():
    made = report()
    again = UnlearningReport.from_json(made.to_json())
    assert asdict(again) == asdict(made)
    assert card_text(configuration(), report=again) == card_text(configuration(), report=made)


if __name__ == "__main__":
    GOLDEN.write_text(golden(), encoding="utf-8")
