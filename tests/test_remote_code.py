"""Code that travels: where hf_esc is not installed, every architecture gives the logits that it gives with it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageClassification, ViTImageProcessor
from transformers.dynamic_module_utils import get_relative_import_files

import hf_esc
from hf_esc import erase
from hf_esc.errors import CheckpointError
from hf_esc.loading import load_classifier
from hf_esc.modeling import modeling_esc
from tests.zoo import ZOO

pytestmark = pytest.mark.filterwarnings(
    "ignore:The erasure is incomplete", "ignore:Whether the head's predictions changed"
)
ROOT = Path(__file__).parents[1]
TRUSTED = {"trust_remote_code": True}

# One process for all: logits by the Auto class, features by AutoModel, and both pipelines where there are pictures.
EVERYTHING = """
sys.path.insert(0, tests)  # for a part that is not installed here
from pathlib import Path
from safetensors.torch import load_file, save_file
from tests.zoo import use_natten_stand_in
use_natten_stand_in()
answer = []
for folder in map(Path, folders):
    inputs = load_file(folder / "inputs.safetensors")
    model = AutoModelForImageClassification.from_pretrained(folder, **trusted).eval()
    features = AutoModel.from_pretrained(folder, **trusted).eval()
    with torch.no_grad():
        found = {"logits": model(**inputs).logits, "features": features(**inputs).pooler_output}
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / "answers.safetensors")
    said = {"folder": folder.name, "class": type(model).__module__.split(".")[0]}
    if (folder / "image.png").is_file():
        image = Image.open(folder / "image.png")
        said["top"] = pipeline("image-classification", model=str(folder), **trusted)(image, top_k=1)[0]
        said["pooled"] = pipeline("image-feature-extraction", model=str(folder), pool=True, **trusted)(image)[0]
    answer.append(said | {"hf_esc": any(name.split(".")[0] == "hf_esc" for name in sys.modules)})
"""


def written(model, inputs, folder: Path, size=None):
    """
    An erased model in a folder of its own with its inputs and a picture where it takes some; its answers to them here.
    """
    erased = erase(model, [inputs], rank=1)
    if size is not None:
        erased.image_processor = ViTImageProcessor(size={"height": size[0], "width": size[1]})
        pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    erased.save_pretrained(folder)
    if size is not None:
        Image.fromarray(pixels).save(folder / "image.png")
    save_file({name: tensor.contiguous() for name, tensor in inputs.items()}, folder / "inputs.safetensors")
    with torch.no_grad():
        output = erased(**inputs)
        if size is None:
            return output, None
        seen = erased(**erased.image_processor(images=Image.fromarray(pixels), return_tensors="pt"))
    score, label = seen.logits[0].softmax(0).max(0)
    top = {"label": erased.config.id2label[int(label)], "score": pytest.approx(float(score), abs=1e-4)}
    return output, {"top": top, "pooled": seen.pooler_output[0]}


def test_every_architecture_without_hf_esc(without_hf_esc, tmp_path):
    expected = {}
    for id, tiny in ZOO.items():
        inputs = tiny.inputs()
        pictures = set(inputs) == {"pixel_values"} and inputs["pixel_values"].shape[1] == 3
        size = tuple(inputs["pixel_values"].shape[-2:]) if pictures else None
        folder = tmp_path / id.replace(".", "_")
        expected[folder.name] = (folder, written(tiny.build(), inputs, folder, size))
    model = load_classifier("embedded/all-cnn", device="cpu")
    generator = torch.Generator().manual_seed(0)
    inputs = {"pixel_values": torch.randn(3, 3, 28, 28, generator=generator)}
    folder = tmp_path / "embedded-all-cnn"
    expected[folder.name] = (folder, written(model, inputs, folder, (28, 28)))

    folders = [str(folder) for folder, _ in expected.values()]
    answers = without_hf_esc(EVERYTHING, tmp_path, tests=ROOT, folders=folders)
    assert [answer["folder"] for answer in answers] == list(expected)
    assert len(answers) == 46
    with_pictures = 0
    for answer in answers:
        folder, (output, of_picture) = expected[answer["folder"]]
        assert answer["class"] == "transformers_modules"
        assert not answer["hf_esc"]
        found = load_file(folder / "answers.safetensors")
        torch.testing.assert_close(found["logits"], output.logits, atol=1e-4, rtol=1e-4, msg=folder.name)
        torch.testing.assert_close(found["features"], output.pooler_output, atol=1e-4, rtol=1e-4)
        if of_picture is not None:
            with_pictures += 1
            assert answer["top"] == of_picture["top"], folder.name
            pooled = torch.tensor(answer["pooled"])
            torch.testing.assert_close(pooled.squeeze(0), of_picture["pooled"], atol=1e-4, rtol=1e-4)
    assert with_pictures >= 40


def test_the_files_that_travel_are_the_package_s_own_and_stand_alone(resnet, fashion, tmp_path):
    erased = erase(resnet, fashion.forget_set([1]).select(range(50)), rank=1)
    erased.save_pretrained(tmp_path)
    package = Path(hf_esc.__file__).parent / "modeling"
    followed = {Path(file).name for file in get_relative_import_files(modeling_esc.__file__)} | {"modeling_esc.py"}
    there = {file.name for file in tmp_path.glob("*.py")}
    assert there == followed
    assert {"configuration_esc.py", "projection.py", "fingerprints.py", "outputs.py", "errors.py"} <= there
    for name in there:
        assert (tmp_path / name).read_bytes() == (package / name).read_bytes(), name
        assert "hf_esc" not in [line.split()[1].split(".")[0] for line in imports(package / name)]


def imports(file: Path) -> list[str]:
    return [line for line in file.read_text().splitlines() if line.lstrip().startswith(("import ", "from "))]


FOREIGN = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

class ForeignConfig(PretrainedConfig):
    model_type = "foreign_classifier"

class ForeignForImageClassification(PreTrainedModel):
    config_class = ForeignConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.body = torch.nn.Conv2d(3, 8, 3, stride=2)
        self.classifier = torch.nn.Linear(8, config.num_labels)
        self.post_init()

    def forward(self, pixel_values, labels=None, **kwargs):
        features = self.body(pixel_values).relu().mean((2, 3))
        return ImageClassifierOutputWithNoAttention(logits=self.classifier(features))
"""


def test_a_base_whose_code_is_its_own_travels_with_it_and_is_refused_with_a_reason_beside_hf_esc(
    without_hf_esc, tmp_path
):
    """hf_esc's own class is taken where it is installed, and that does not run the code of others."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "foreign.py").write_text(FOREIGN)
    config = {"model_type": "foreign_classifier", "num_labels": 5, "architectures": ["ForeignForImageClassification"]}
    code = {"AutoConfig": "foreign.ForeignConfig"}
    code["AutoModelForImageClassification"] = "foreign.ForeignForImageClassification"
    (base / "config.json").write_text(json.dumps(config | {"auto_map": code}))
    settings = AutoConfig.from_pretrained(base, **TRUSTED)
    model = AutoModelForImageClassification.from_config(settings, **TRUSTED).eval()
    inputs = {"pixel_values": torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
    folder = tmp_path / "erased"
    output, _ = written(model, inputs, folder, (16, 16))
    [answer] = without_hf_esc(EVERYTHING, tmp_path, tests=ROOT, folders=[str(folder)])
    assert answer["class"] == "transformers_modules"
    found = load_file(folder / "answers.safetensors")
    torch.testing.assert_close(found["logits"], output.logits, atol=1e-5, rtol=1e-5)
    with pytest.raises(CheckpointError, match="wraps a 'foreign_classifier', which this version of transformers"):
        AutoModelForImageClassification.from_pretrained(folder, **TRUSTED)
