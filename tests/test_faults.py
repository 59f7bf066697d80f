"""The harness of `make faults` tries a part of its cases, and each law holds in it or is broken as is known."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import faults  # noqa: E402
import faults_damage  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(hub, tmp_path_factory):
    """The harness with its folders, in processes of its own."""
    home = tmp_path_factory.mktemp("faults")
    server = faults.Server(hub, home / "home")
    one = faults.Faults(home / "work", server, hub, fraction=0.1)
    one.prepare()
    yield one
    server.close()


def test_no_damage_gives_a_class_back_and_none_shows_a_traceback(made):
    cases = [case for case in faults_damage.damages(made.work / "folders", made.seed) if case["file"] != "README.md"]
    cases = [(str(number), case) for number, case in enumerate(cases) if made.chosen(f"test/{number}")]
    assert len(cases) > 50
    outcomes = dict(made.damaged(cases[:60]))
    broken = {name: result for name, result in outcomes.items() if result["broken"]}
    assert not broken
    assert {result["came to"] for result in outcomes.values()} >= {faults_damage.REFUSED, faults_damage.CAUGHT}


@pytest.mark.parametrize("name", ["erase, overwrite", "train delete, overwrite"])
@pytest.mark.parametrize("action", ["kill", "interrupt", "full"])
def test_a_command_that_is_ended_leaves_the_old_or_the_new_and_can_be_run_again(made, name, action):
    scenario = faults.BY_NAME[name]
    steps = made.bench.reference(scenario)["steps"]
    result = made.bench.disturbed(scenario, hook={"at": steps - 3, "action": action})
    assert not result["broken"], result
    assert result["left"] in ("old", "old aside", "new")
