"""Whoever imports what first, transformers knows ESC and the All-CNN; `import hf_esc` alone costs next to nothing."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import hf_esc

ROOT = Path(__file__).parents[1]
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

SCRIPT = """
sys.path.insert(0, root)
assert not any(name.startswith("hf_esc") or name.endswith("modeling_auto") for name in sys.modules)
exec(order, {})
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
esc = {"base_config": {"model_type": "all_cnn", "hidden_sizes": [2, 3], "architectures": None}}
site = {"modules": ["classifier"], "dim": 3, "axis": -1}
esc |= {"sites": [site], "factors": [[{"type": "low_rank", "rank": 1}]]}
config = AutoConfig.for_model("esc", **esc)
models = [auto.from_config(config) for auto in (AutoModel, AutoModelForImageClassification)]
answer = [type(model).__name__ for model in (*models, models[0].model)]
"""


@pytest.mark.parametrize("order", ORDERS)
def test_the_auto_classes_know_esc_in_any_order_of_imports(elsewhere, order):
    found = elsewhere(SCRIPT, root=ROOT, order=ORDERS[order])["answer"]
    assert found == ["ESCFeatureModel", "ESCModel", "AllCNNForImageClassification"]


def test_importing_hf_esc_alone_imports_neither_torch_nor_transformers():
    code = "import sys, hf_esc; print(sorted({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_every_public_name_is_there_and_no_other():
    for name in hf_esc.__all__:
        assert getattr(hf_esc, name) is not None
        assert name in dir(hf_esc)
    with pytest.raises(AttributeError, match="no attribute 'forget'"):
        hf_esc.forget  # noqa: B018 (the access is what is tested)
