"""
What the committed experiments say: which bars are met, and exactly which are missed.

It reads committed numbers and runs none of the code.
"""

import sys
from pathlib import Path
from statistics import mean

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import report_unlearning as report

pytestmark = pytest.mark.results
CLASSES = ("Trouser", "Shirt", "Bag")
# A method that forgets a class leaves at most 10 % of its training images, and costs the others at most 5 points of
# test accuracy. What misses that, by (method, class): what is left is too much (D_f), or what is lost (D_rt).
RESNET = {(method, name): {"D_rt"} for method in ("neg-grad", "random-label") for name in CLASSES}
RESNET |= {("bad-teacher", "Shirt"): {"D_f", "D_rt"}}
RESNET |= {("fisher", name): {"D_f", "D_rt"} for name in CLASSES}
ALL_CNN = {("delete", name): {"D_rt"} for name in ("Trouser", "Bag")}
ALL_CNN |= {(method, name): {"D_rt"} for method in ("neg-grad", "random-label") for name in CLASSES}
ALL_CNN |= {("boundary-shrink", name): {"D_rt"} for name in ("Trouser", "Bag")}
ALL_CNN |= {("scrub", "Trouser"): {"D_rt"}, ("fisher", "Trouser"): {"D_f", "D_rt"}}
VIT = {(method, name): {"D_rt"} for method in ("delete", "boundary-shrink") for name in ("Trouser", "Bag")}
VIT |= {(method, name): {"D_rt"} for method in ("neg-grad", "random-label") for name in CLASSES}
VIT |= {("random-label", "Bag"): {"D_f", "D_rt"}, ("neg-grad-plus", "Trouser"): {"D_f"}}
VIT |= {("fisher", "Trouser"): {"D_f", "D_rt"}}
MISSED = {"table1-resnet": RESNET, "table1-all-cnn": ALL_CNN, "table1-vit": VIT}


def after(experiment: str, label: str, name: str, key: str) -> float:
    rows = [row for row in report.rows_of(experiment) if row["label"] == label and row["request"] == [name]]
    return mean(row["accuracies"][key] for row in rows)


def runs(experiment: str) -> list[tuple[str, str]]:
    """Methods and classes; on some models methods with retain images have one class alone."""
    rows = [row for row in report.rows_of(experiment) if row["label"] not in report.REFERENCES]
    return list(dict.fromkeys((row["label"], *row["request"]) for row in rows))


@pytest.mark.parametrize("experiment", MISSED)
def test_each_method_forgets_and_keeps_the_others_but_where_it_is_known_not_to(experiment):
    missed = {}
    for label, name in runs(experiment):
        before = after(experiment, "original", name, "retain_test")
        what = {"D_f"} if after(experiment, label, name, "forget_train") > 10 else set()
        what |= {"D_rt"} if after(experiment, label, name, "retain_test") < before - 5 else set()
        missed |= {(label, name): what} if what else {}
    assert missed == MISSED[experiment]


def test_delete_on_the_all_cnn_keeps_the_others_for_shirt_alone():
    """The bar: at most 3 % of the test images left, and the others within 3 points; for two of three it is missed."""
    met = set()
    for name in CLASSES:
        assert after("table1-all-cnn", "delete", name, "forget_test") <= 3
        before = after("table1-all-cnn", "original", name, "retain_test")
        if after("table1-all-cnn", "delete", name, "retain_test") >= before - 3:
            met.add(name)
    assert met == {"Shirt"}


@pytest.mark.parametrize("experiment", MISSED)
def test_a_converged_probe_reads_the_class_after_every_method_but_remap(experiment):
    """The README says so: not less than from a random network, which is what anyone learns from the pictures."""

    def read(label: str, name: str) -> float:
        rows = [row for row in report.rows_of(experiment) if row["label"] == label and row["request"] == [name]]
        return mean(row["retention"]["converged"]["forget_test"] for row in rows)

    for label, name in runs(experiment):
        assert (read(label, name) < 20) == (label == "remap")
        assert label == "remap" or read(label, name) > read("random", name) - 10


def test_every_row_says_what_it_was_made_with():
    for experiment in MISSED:
        for row in report.rows_of(experiment):
            assert row["key"]
            assert row["setting"]["revision"]
            assert row["label"] in report.REFERENCES or row["seconds"] > 0
