"""The harness of `make faults` tries a part of its cases, and finds nothing worse than the committed results say."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import faults  # noqa: E402
import faults_damage  # noqa: E402
import results  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(hub, tmp_path_factory):
    """The harness with some of its folders, in processes of its own."""
    home, some = tmp_path_factory.mktemp("faults"), ("esc", "delete", "evaluated and pushed")
    server = faults.Server(hub, home / "home")
    one = faults.Faults(home / "work", server, hub, fraction=0.06)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faults, "FOLDERS", {name: faults.FOLDERS[name] for name in some})
        patch.setattr(faults, "CHECKPOINTS", {})
        one.prepare()
    yield one
    server.close()


def known(group: str) -> set[str]:
    """What the committed results say that does not hold."""
    return set(results.read(faults.RESULTS)[group]["reasons"])


def test_no_damage_breaks_a_law_that_the_results_do_not_tell_of(made):
    cases = enumerate(faults_damage.damages(made.work / "folders", made.seed))
    cases = [(str(number), case) for number, case in cases if made.chosen(f"{number}")]
    assert len(cases) > 12
    outcomes = dict(made.damaged(cases))
    assert not {name: result for name, result in outcomes.items() if set(result["broken"]) - known("damage")}
    assert {result["came to"] for result in outcomes.values()} >= {faults_damage.REFUSED, faults_damage.CAUGHT}


@pytest.mark.parametrize(
    ("name", "action"),
    [("erase, overwrite", "kill"), ("erase, overwrite", "interrupt"), ("train delete, overwrite", "full")],
)
def test_a_command_that_is_ended_leaves_the_old_or_the_new_and_can_be_run_again(made, name, action):
    scenario = faults.BY_NAME[name]
    steps = made.bench.reference(scenario)["steps"]
    result = made.bench.disturbed(scenario, hook={"at": steps - 3, "action": action})
    assert not result["broken"], result
    assert result["left"] in ("old", "old aside", "new")
