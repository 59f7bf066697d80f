"""Whoever imports what first, transformers knows ESC and the All-CNN; `import hf_esc` alone costs next to nothing."""

import json
import os
import pkgutil
import subprocess
import sys

import pytest

import hf_esc

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(hf_esc.__path__, "hf_esc.")
    if not module.name.endswith("__main__") and not module.name.startswith("hf_esc.metrics")
)
ORDERS = {
    "hf_esc first": "import hf_esc",
    "transformers first": "import transformers; import hf_esc",
    "Auto classes first": "from transformers import AutoConfig, AutoModelForImageClassification; import hf_esc",
    "configurations first": "import transformers.models.auto.configuration_auto; import hf_esc",
    "models first": "import transformers.models.auto.modeling_auto; import hf_esc",
    "pipeline after": "import hf_esc; from transformers import pipeline",
    "twice": "import hf_esc; hf_esc.register(); import transformers.models.auto.modeling_auto; hf_esc.register()",
    **{f"{module} first": f"import {module}" for module in MODULES},
}

# Each order runs in a fork of a process that has the other libraries at hand, but neither the Auto classes nor hf_esc.
SCRIPT = """
import json, os, sys, traceback
import accelerate, datasets, sklearn.decomposition, sklearn.linear_model, sklearn.neighbors, torch, typer
import torchvision.transforms.v2, transformers.image_processing_utils, transformers.modeling_utils
import transformers.processing_utils, transformers.tokenization_utils_base

assert not any(name.startswith("hf_esc") or name.endswith("modeling_auto") for name in sys.modules)
results = {}
for name, code in json.load(sys.stdin).items():
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            exec(code, {})
            from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
            esc = {"base_config": {"model_type": "all_cnn", "hidden_sizes": [2, 3], "architectures": None}}
            site = {"modules": ["classifier"], "dim": 3, "axis": -1}
            esc |= {"sites": [site], "factors": [[{"type": "low_rank", "rank": 1}]]}
            config = AutoConfig.for_model("esc", **esc)
            models = [auto.from_config(config) for auto in (AutoModel, AutoModelForImageClassification)]
            result = [type(model).__name__ for model in (*models, models[0].model)]
        except BaseException:
            result = traceback.format_exc()
        os.write(write, json.dumps(result).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        results[name] = json.loads(pipe.read())
    os.waitpid(pid, 0)
print(json.dumps(results))
"""


def run(*arguments: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=300, check=False, **kwargs
    )


@pytest.fixture(scope="module")
def registered() -> dict:
    done = run("-c", SCRIPT, input=json.dumps(ORDERS))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("order", ORDERS)
def test_the_auto_classes_know_esc_in_any_order_of_imports(registered, order):
    assert registered[order] == ["ESCFeatureModel", "ESCModel", "AllCNNForImageClassification"]


def test_importing_hf_esc_alone_imports_neither_torch_nor_transformers():
    code = "import sys, hf_esc; print(sorted({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)))"
    done = run("-c", code)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_every_public_name_is_there_and_no_other():
    for name in hf_esc.__all__:
        assert getattr(hf_esc, name) is not None
        assert name in dir(hf_esc)
    with pytest.raises(AttributeError, match="no attribute 'forget'"):
        hf_esc.forget  # noqa: B018 (the access is what is tested)
