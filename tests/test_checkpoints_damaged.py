"""No way of loading takes a checkpoint whose projection is damaged: such a model would look erased and not be."""

import json
import shutil
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_esc.errors import CheckpointError

from .test_checkpoints import WAYS, with_factors

pytestmark = pytest.mark.slow

# The factors of the whole checkpoints that are damaged. The low-rank ones have two columns.
WHOLE = {
    "low-rank": ["low_rank"],
    "masked": ["masked"],
    "mixed": ["low_rank", "masked", "low_rank"],
    "two masks": ["masked", "masked"],
}


def damage(folder, target, config=None, **tensors: Callable):
    """
    A copy of a checkpoint with its configuration changed, or tensors of its factors: `basis_0` is that of the first,
    and what becomes None is dropped.
    """
    shutil.copytree(folder, target)
    if tensors:
        weights = load_file(target / "model.safetensors")
        for name, change in tensors.items():
            kind, number = name.split("_")
            path = f"projections.0.factors.{number}.{kind}"
            weights[path] = change(weights[path])
        weights = {name: tensor.contiguous() for name, tensor in weights.items() if tensor is not None}
        save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    if config is not None:
        values = json.loads((target / "config.json").read_text())
        config(values)
        (target / "config.json").write_text(json.dumps(values))
    return target


def dropped(tensor):
    return None


def with_one(value):
    """One entry is another."""

    def change(tensor):
        tensor = tensor.clone()
        tensor[3, 0] = value
        return tensor

    return change


def factors(change):
    """A configuration whose list of factors is another."""
    return lambda config: config["factors"].__setitem__(0, change(config["factors"][0]))


LOW_RANK, RANK_0, MASKED = {"type": "low_rank", "rank": 2}, {"type": "low_rank", "rank": 0}, {"type": "masked"}
DAMAGES = {
    "low-rank": {
        "missing": {"basis_0": dropped},
        "zero": {"basis_0": torch.zeros_like},
        "scaled": {"basis_0": lambda basis: 0.9 * basis},
        "one column zero": {"basis_0": lambda basis: basis * torch.tensor([1.0, 0.0])},
        "not finite": {"basis_0": with_one(torch.nan)},
        "fewer columns": {"basis_0": lambda basis: basis[:, :1]},
        "no column": {"basis_0": lambda basis: basis[:, :0]},
        "fewer rows": {"basis_0": lambda basis: basis[:-1]},
        "transposed": {"basis_0": lambda basis: basis.T},
        "rank 0 in both": {
            "basis_0": lambda basis: basis[:, :0],
            "config": factors(lambda _: [LOW_RANK | {"rank": 0}]),
        },
        "no factor in both": {"basis_0": dropped, "config": factors(lambda _: [])},
        "no factor": {"config": factors(lambda _: [])},
        "unknown factor": {"config": factors(lambda _: [{"type": "rotated", "rank": 2}])},
        "called masked": {"config": factors(lambda _: [MASKED])},
        "no sites": {"config": lambda c: c.update(sites=[], factors=[])},
        "no factors": {"config": lambda c: c.pop("factors")},
        "no base": {"config": lambda c: c.pop("base_config")},
        "another module": {"config": lambda c: c["sites"][0].update(modules=["nowhere"])},
    },
    "masked": {
        "no mask": {"mask_0": dropped},
        "no basis": {"basis_0": dropped},
        "neither": {"basis_0": dropped, "mask_0": dropped},
        "mask of ones": {"mask_0": torch.ones_like},
        "mask of zeros": {"mask_0": torch.zeros_like},
        "mask with a 2": {"mask_0": with_one(2)},
        "mask never filled": {"mask_0": lambda mask: torch.full_like(mask, 255)},
        "mask of halves": {"mask_0": lambda mask: 0.5 * mask.float()},
        "mask not finite": {"mask_0": lambda mask: mask.float() * torch.nan},
        "mask of fewer rows": {"mask_0": lambda mask: mask[:-1]},
        "mask of one row": {"mask_0": lambda mask: mask[:1]},
        "mask that is flat": {"mask_0": torch.flatten},
        "basis not finite": {"basis_0": with_one(torch.nan)},
        "basis zero": {"basis_0": torch.zeros_like},
        "basis scaled": {"basis_0": lambda basis: 0.9 * basis},
        "basis with an entry off": {"basis_0": with_one(1.0)},
        "basis in half precision": {"basis_0": lambda basis: basis.bfloat16()},
        "basis of fewer columns": {"basis_0": lambda basis: basis[:, :-1]},
        "called low-rank": {"config": factors(lambda _: [LOW_RANK])},
        "called low-rank of full rank": {"config": factors(lambda _: [LOW_RANK | {"rank": 128}])},
        "called low-rank in both": {"mask_0": dropped, "config": factors(lambda _: [LOW_RANK | {"rank": 127}])},
    },
    "mixed": {
        "one fewer": {"config": factors(lambda all: all[:-1])},
        "the first gone": {"config": factors(lambda all: all[1:])},
        "one more": {"config": factors(lambda all: [*all, MASKED])},
        "one more that is low-rank": {"config": factors(lambda all: [*all, LOW_RANK])},
        "the first two exchanged": {"config": factors(lambda all: [all[1], all[0], all[2]])},
        "the last two exchanged": {"config": factors(lambda all: [all[0], all[2], all[1]])},
        "the last one damaged": {"basis_2": torch.zeros_like},
        "all in one": {"config": lambda c: c.update(factors=[[factor] for factor in c["factors"][0]])},
    },
    "two masks": {
        "one fewer": {"config": factors(lambda all: all[:-1])},
        "one more": {"config": factors(lambda all: [*all, MASKED])},
        "one of them low-rank": {"config": factors(lambda all: [all[0], LOW_RANK])},
        "the second of ones": {"mask_1": torch.ones_like},
    },
}
CASES = [(kind, name) for kind, damages in DAMAGES.items() for name in damages]


@pytest.fixture(scope="module")
def whole(resnet, tmp_path_factory):
    """A folder for each of `WHOLE`."""
    folders = {kind: tmp_path_factory.mktemp("whole") / "model" for kind in WHOLE}
    for kind, folder in folders.items():
        with_factors(resnet, WHOLE[kind]).save_pretrained(folder)
    return folders


@pytest.mark.parametrize(("kind", "name"), CASES, ids=[f"{kind}, {name}" for kind, name in CASES])
def test_a_damaged_projection_does_not_load(whole, kind, name, tmp_path):
    broken = damage(whole[kind], tmp_path / "broken", **DAMAGES[kind][name])
    for way in WAYS.values():
        with pytest.raises(ValueError) as caught:
            way(broken)
        # A pipeline tries several classes and puts what they raise into an error of its own.
        assert isinstance(caught.value, CheckpointError) or "CheckpointError" in str(caught.value)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", WHOLE)
def test_an_undamaged_one_loads(whole, kind, way, tmp_path):
    WAYS[way](damage(whole[kind], tmp_path / "whole", basis_0=torch.clone))


TRY_ALL = """
answer = []
for folder in os.listdir("folders"):
    for auto in (AutoModelForImageClassification, AutoModel):
        try:
            said = type(auto.from_pretrained(os.path.join("folders", folder), trust_remote_code=True)).__name__
        except Exception as error:
            said = type(error).__name__
        answer.append([folder, said])
"""


def test_none_loads_where_hf_esc_is_not_installed(whole, without_hf_esc, tmp_path):
    (tmp_path / "folders").mkdir()
    for number, (kind, name) in enumerate(CASES):
        damage(whole[kind], tmp_path / "folders" / f"damaged_{number}", **DAMAGES[kind][name])
    for number, kind in enumerate(WHOLE):
        damage(whole[kind], tmp_path / "folders" / f"whole_{number}")
    answers = without_hf_esc(TRY_ALL, tmp_path)
    assert len(answers) == 2 * (len(CASES) + len(WHOLE))
    for name, answer in answers:
        expected = {"CheckpointError"} if name.startswith("damaged") else {"ESCModel", "ESCFeatureModel"}
        assert answer in expected, CASES[int(name.split("_")[1])]
