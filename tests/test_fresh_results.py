"""
What is committed is what the code does now: one row of each kind is made again.

Another machine rounds otherwise, so a number may move a little; one that moves more is of other code than this.
"""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from hf_esc.data.batches import ImageCollator
from hf_esc.erasure.remap import remap
from hf_esc.evaluation.model_features import model_features
from hf_esc.loading import load_processor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import esc_t as esc_t_benchmark  # noqa: E402
import remap as remap_benchmark  # noqa: E402
import results  # noqa: E402
import run  # noqa: E402

pytestmark = pytest.mark.slow

MODEL, CLASS, TROUSER = "embedded/resnet", "Trouser", 1
MADE = ["original", "esc", "delete", "lau"]
TUNING = ROOT / "benchmarks" / "results" / "tuning" / "resnet.json"


def committed(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def near(found: dict, expected: dict, points: float) -> None:
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=points), key


@pytest.fixture(scope="module", autouse=True)
def _each_batch_is_read_once():
    """All rows are of the same images."""
    seen, read = {}, ImageCollator.__call__

    def call(self, rows):
        files = tuple(hash(row[self.image_column]["bytes"]) for _, row in rows)
        key = (repr(self.processor), self.label_column, self.mode, files)
        if key not in seen:
            seen[key] = read(self, rows)
        return {name: tensor.clone() for name, tensor in seen[key].items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageCollator, "__call__", call)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Features are kept in its `build/`."""
    return tmp_path_factory.mktemp("rows")


@pytest.fixture(scope="module")
def experiment():
    made = run.Experiment(**json.loads((ROOT / "benchmarks" / "experiments" / "table1-resnet.json").read_text()))
    return dataclasses.replace(made, requests=[[CLASS]], seeds=[0], details=[])


@pytest.fixture(scope="module")
def rows(experiment, folder):
    """Some rows of Table 1, made anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # ZRF is not looked at. It is all that the random network is for.
        patch.setattr(run.Subject, "random", property(lambda self: self.features(self.original, "original")))
        run.run_experiment("fresh", experiment, run.Arguments(methods=MADE), folder / "rows.json", TUNING)
    return results.read(folder / "rows.json")["rows"]


@pytest.mark.parametrize("label", MADE)
def test_rows_of_table_1(rows, label):
    name = f"{label}/{CLASS}/seed=0"
    fresh, stored = rows[name], committed("experiments/table1-resnet")["rows"][name]
    assert fresh["settings"] == stored["settings"]
    near(fresh["accuracies"], stored["accuracies"], points=1)
    for probe, values in stored["retention"].items():
        # The harmonic mean of an original is near 0, where a point of D_f is two of it.
        near(fresh["retention"][probe], values, points=3)


def test_esc_is_the_same_in_all_files_that_have_it(rows):
    row = rows[f"esc/{CLASS}/seed=0"]
    entry = committed("embedded")[MODEL]["classes"][CLASS]
    near(row["accuracies"], entry["after"], points=0.5)
    assert row["retention"]["converged"]["forget_test"] == pytest.approx(
        entry["probe"]["erased"]["forget_test"], abs=3
    )
    report = committed("knowledge_retention")[MODEL]["models"]["model"]
    near(row["accuracies"], report["accuracies"], points=0.5)
    near(row["retention"]["converged"], report["retention"]["converged"]["mean"], points=3)


def test_a_row_of_esc_t(fashion):
    stored = committed("esc_t")["seeds"][MODEL][CLASS]["seed=0"]
    fresh = esc_t_benchmark.Subject(MODEL, fashion).run(TROUSER, {"seed": 0}, probe=False)
    assert fresh["steps"] == pytest.approx(stored["steps"], abs=2)
    assert fresh["cut"] == pytest.approx(stored["cut"], abs=1e-3)
    near(fresh["after"], stored["after"], points=0.5)


def test_a_row_of_remap(rows, resnet, fashion, experiment, folder):
    """That of the file of remap, and that of Table 1, which has the same numbers."""
    stored = committed("remap")[MODEL][CLASS]
    kept = folder / "build" / "features" / MODEL.replace("/", "-")
    assert kept.is_dir()
    processor = load_processor(resnet)
    seen = model_features(resnet, fashion, processor, folder=kept, name="original", batch_size=100)
    sets = fashion.forget_set([TROUSER]), fashion.select(fashion.train, [TROUSER], keep=False)
    factor = remap(resnet, *sets, processing_class=processor, batch_size=100).projections[0].factors[0]
    few = seen.test.features[:10]
    case = remap_benchmark.Case(seen.train, seen.test, TROUSER, few, few)
    near(case.gate(factor), stored["seed=0"]["gate"], points=0.5)
    head, probes = case.head(factor, factor), case.measured(factor, 0)["probes"]
    near(head, stored["seed=0"]["head"], points=0.5)
    for probe, values in probes.items():
        near(values, stored["seed=0"]["probes"][probe], points=4 if probe == "one_vs_rest" else 3)
    for what, value in case.attackers(factor).items():
        if "repeated" in what:
            assert value == pytest.approx(stored["attackers"][what], abs=4)

    row = committed("experiments/table1-resnet")["rows"][f"remap/{CLASS}/seed=0"]
    [method] = [method for method in experiment.methods if method["method"] == "remap"]
    assert run.settings_of(method, experiment, TUNING) == row["settings"] == {}
    near(head, row["accuracies"], points=1)
    for probe, values in row["retention"].items():
        near(probes[probe], values, points=3)
