"""`evaluate.load` finds the metrics of hf_esc by name, whatever the Hub has, and everything else as ever."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hf_esc.evaluation.metric_folders import metric_folder

from .hub import Repo

ROOT = Path(__file__).parents[1]
METRICS = sorted(path.stem for path in (ROOT / "metrics").glob("*/*_score.py"))

ELSEWHERE = """
import datasets
import evaluate

class Other(evaluate.{kind}):
    def _info(self):
        inputs = {{"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}}
        return evaluate.{kind}Info(description="{where}", citation="", features=datasets.Features(inputs))
"""

LOADED = "; print(evaluate.load({}).description.strip())"
KR = LOADED.format("'kr_score'")
# Each in a folder of its own; nothing may be asked of the Hub, which has metrics of these names.
OURS = {
    "hf_esc first": "import hf_esc, evaluate" + KR,
    "evaluate first": "import evaluate, hf_esc" + KR,
    "load first": "from evaluate import load; import hf_esc, evaluate" + KR.replace("evaluate.load", "load"),
    "load after": "import hf_esc, evaluate; from evaluate import load" + KR.replace("evaluate.load", "load"),
    "evaluate.loading first": "import evaluate.loading, hf_esc" + KR,
    "evaluate.loading after": "import hf_esc, evaluate.loading" + KR,
    "registered again before": "import hf_esc; hf_esc.register(); import evaluate" + KR,
    "registered again after": "import hf_esc, evaluate; hf_esc.register()" + KR,
    "hm_score": "import hf_esc, evaluate" + LOADED.format("'hm_score'"),
    "a metric": "import hf_esc, evaluate" + LOADED.format("'kr_score', module_type='metric'"),
    "two together": "import hf_esc, evaluate; print(*evaluate.combine(['hm_score', 'kr_score']).evaluation_modules)",
    "with settings": "import hf_esc, evaluate" + LOADED.format("'kr_score', 'a name', experiment_id='a'"),
    "inspected": "import hf_esc, evaluate; evaluate.inspect_evaluation_module('kr_score', 'copy')",
    "in metrics/": f"import hf_esc, evaluate, os; os.chdir({str(ROOT / 'metrics')!r})" + KR,
    "a folder that is no metric": "import hf_esc, evaluate, os; os.mkdir('kr_score')" + KR,
}
# What is not ours is found where it ever was. One after the other, with the same caches.
OFFLINE = "import os; os.environ['HF_EVALUATE_OFFLINE'] = '1'; "
AS_EVER = {
    "without hf_esc": ("import evaluate" + KR, "the Hub's kr_score"),
    # By now there is a copy on this machine.
    "without hf_esc, offline": (OFFLINE + "import evaluate" + KR, "the Hub's kr_score"),
    "ours, in spite of a copy": ("import hf_esc, evaluate" + KR, "Knowledge retention"),
    "ours, in spite of a copy, offline": (OFFLINE + "import hf_esc, evaluate" + KR, "Knowledge retention"),
    "another of the Hub": ("import hf_esc, evaluate" + LOADED.format("'other'"), "the Hub's other"),
    "somebody's kr_score": ("import hf_esc, evaluate" + LOADED.format("'me/kr_score'"), "my kr_score"),
    "a comparison": (
        "import hf_esc, evaluate" + LOADED.format("'kr_score', module_type='comparison'"),
        "the Hub's comparison",
    ),
    "a folder": ("import hf_esc, evaluate; save('kr_score/kr_score.py')" + KR, "a file's"),
    "a folder by path": (
        "import hf_esc, evaluate; save('a/kr_score/kr_score.py')" + LOADED.format("'a/kr_score'"),
        "a file's",
    ),
    "a file": ("import hf_esc, evaluate; save('kr_score.py')" + LOADED.format("'kr_score.py'"), "a file's"),
    "another folder": ("import hf_esc, evaluate; save('other/other.py')" + LOADED.format("'other'"), "a file's"),
    "nowhere": (
        "import hf_esc, evaluate\ntry: evaluate.load('no_score')\nexcept FileNotFoundError as error: print(error)",
        "Module 'no_score' doesn't exist on the Hugging Face Hub either",
    ),
    "a module of the user's that is called evaluate": (
        "save('evaluate.py', 'load = \"mine\"'); import hf_esc, evaluate; hf_esc.register(); print(evaluate.load)",
        "mine",
    ),
    "a package of the user's that is called evaluate": (
        "save('evaluate/__init__.py', ''); save('evaluate/loading.py', 'load = \"mine\"')\n"
        "import hf_esc; from evaluate.loading import load; hf_esc.register(); print(load)",
        "mine",
    ),
    "one function, wrapped once": (
        "import evaluate, evaluate.evaluation_suite, hf_esc; hf_esc.register(); hf_esc.register()\n"
        "found = [place.evaluation_module_factory for place in (evaluate.loading, evaluate.inspect,\n"
        "         evaluate.evaluation_suite)]\n"
        "print(len(set(found)), hasattr(found[0], '__wrapped__'), hasattr(found[0].__wrapped__, '__wrapped__'))",
        "1 True False",
    ),
    "the function can be pickled": (
        "import hf_esc, evaluate, pickle; found = evaluate.loading.evaluation_module_factory\n"
        "print(pickle.loads(pickle.dumps(found)) is found)",
        "True",
    ),
}

# Each runs in a fork of a process that has what evaluate imports, but neither evaluate nor hf_esc. It finds hf_esc in
# this checkout, and modules in the working directory.
SCRIPT = f"""
import huggingface_hub
assert not any(name.startswith(("hf_esc", "evaluate")) for name in sys.modules)

def save(path, text={ELSEWHERE.format(kind="Metric", where="a file's")!r}):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    open(path, "w").write(text)

os.environ.update(variables)
if "HF_HUB_OFFLINE" in variables:  # what was read when the libraries were imported
    huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
sys.path[:0] = [".", root]
exec(case, {{"save": save}})
"""


@pytest.fixture(scope="module")
def others(hub):
    """A Hub on which others have the names of our metrics."""
    spaces = {
        "evaluate-metric/kr_score": ("Metric", "the Hub's kr_score"),
        "evaluate-metric/hm_score": ("Metric", "the Hub's hm_score"),
        "evaluate-metric/other": ("Metric", "the Hub's other"),
        "evaluate-comparison/kr_score": ("Comparison", "the Hub's comparison"),
        "me/kr_score": ("Metric", "my kr_score"),
    }
    for name, (kind, where) in spaces.items():
        hub.repos["space", name] = repo = Repo(name, "space", sdk="gradio")
        file = name.split("/")[1] + ".py"
        repo.commit("main", "the metric", {file: ELSEWHERE.format(kind=kind, where=where).encode()})
    yield hub
    for name in spaces:
        del hub.repos["space", name]


@pytest.fixture
def printed(elsewhere, others, tmp_path):
    """What each case prints, with caches of their own."""
    others.requests.clear()

    def run(cases: dict[str, str], **variables: str) -> dict[str, str]:
        values = {"root": ROOT, "variables": {"HF_HOME": str(tmp_path / "home"), **variables}}
        folders = {name: Path(tempfile.mkdtemp(dir=tmp_path)) for name in cases}
        return {name: elsewhere(SCRIPT, folders[name], case=cases[name], **values)["printed"] for name in cases}

    return run


@pytest.mark.parametrize("variables", [{}, {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}], ids=repr)
def test_our_metrics_are_found_by_name_and_nothing_is_asked_of_the_hub(others, printed, variables):
    found = printed(OURS, **variables)
    kr, hm = "Knowledge retention: the accuracies", "How well a classifier has forgotten"
    starts = {**dict.fromkeys(OURS, kr), "hm_score": hm}
    starts["two together"] = 'EvaluationModule(name: "hm_score"'
    starts["inspected"] = "The processing scripts for metric kr_score"
    assert {name: text for name, text in found.items() if not text.startswith(starts[name])} == {}
    assert 'EvaluationModule(name: "kr_score"' in found["two together"]
    assert others.requests == []


def test_what_is_not_ours_is_found_as_ever(others, printed):
    found = printed({name: code for name, (code, _) in AS_EVER.items()})
    assert {name: text for name, text in found.items() if AS_EVER[name][1] not in text} == {}
    assert any("evaluate-metric/other" in path for _, path, _ in others.requests)


def test_every_metric_of_the_checkout_is_ours():
    assert {"hm_score", "kr_score"} <= set(METRICS)
    for name in METRICS:
        assert metric_folder(name) == ROOT / "metrics" / name
        assert {path.name for path in metric_folder(name).iterdir()} >= {
            *("README.md", "app.py", f"{name}.py", "requirements.txt"),
        }


@pytest.mark.parametrize(
    "name", ["accuracy", "", ".", "..", "kr_score.py", "./kr_score", "metrics/kr_score", "hf_esc"]
)
def test_nothing_else_is(name):
    assert metric_folder(name) is None


def test_importing_hf_esc_does_not_import_evaluate():
    code = "import sys, hf_esc; print('evaluate' in sys.modules, 'hf_esc.evaluation.metric_folders' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("False False\n", "")
