"""What save_state writes comes back as it was, without pickle, and what it cannot write or read is refused."""

import json
import random

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from hf_esc.errors import CheckpointError
from hf_esc.training.training_state import load_state, save_state

KINDS = (np.float32, np.float64, np.int64, np.uint8, np.uint32, np.bool_)
ARRAYS = st.sampled_from(KINDS).flatmap(lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=0, min_side=0)))
KEYS = st.one_of(st.text(max_size=5), st.integers(), st.sampled_from(["tensor", "array", "tuple", "dict"]))
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), ARRAYS, ARRAYS.map(torch.tensor))
STATES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple), st.dictionaries(KEYS, inner, max_size=3)
    ),
)


def assert_same(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)  # with their types, and in their order
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, torch.Tensor | np.ndarray):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()
    else:
        assert repr(found) == repr(expected)  # NaN, infinities and -0.0 too


@given(state=STATES)
def test_what_is_saved_comes_back(state, tmp_path_factory):
    file = tmp_path_factory.mktemp("state") / "a folder" / "state.safetensors"
    save_state(file, state)
    assert_same(load_state(file), state)


def test_views_of_one_memory_come_back(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    state = {"whole": whole, "again": whole, "row": whole[1], "turned": whole.T, "half": whole.bfloat16()}
    state["trained"] = torch.nn.Parameter(whole.clone())
    save_state(tmp_path / "state", state)
    loaded = load_state(tmp_path / "state")
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    assert loaded["half"].dtype == torch.bfloat16


OPTIMIZERS = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.1),
    "momentum": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.1, amsgrad=True),
    "rmsprop": lambda weights: torch.optim.RMSprop(weights, lr=0.1, momentum=0.5, centered=True),
    "adagrad": lambda weights: torch.optim.Adagrad(weights, lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_where_it_was(name, tmp_path):
    def fresh(start):
        weights = torch.nn.Parameter(start.clone())
        optimizer = OPTIMIZERS[name]([weights])
        return weights, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)

    def steps(weights, optimizer, schedule):
        for _ in range(5):
            optimizer.zero_grad()
            (weights**4).sum().backward()
            optimizer.step()
            schedule.step()

    run = fresh(torch.linspace(-1, 1, 7))
    steps(*run)
    save_state(tmp_path / "state", [part.state_dict() for part in run[1:]])
    other = fresh(run[0].detach())
    for part, state in zip(other[1:], load_state(tmp_path / "state"), strict=True):
        part.load_state_dict(state)
    steps(*run)
    steps(*other)
    assert torch.equal(run[0], other[0])
    assert run[2].get_last_lr() == other[2].get_last_lr()


def test_random_states_come_back(tmp_path):
    generator = torch.Generator().manual_seed(3)
    numbers, digits = np.random.RandomState(3), random.Random(3)
    torch.randn(3, generator=generator), numbers.normal(size=3), digits.gauss(0, 1)  # each keeps a second one
    save_state(tmp_path / "state", [generator.get_state(), numbers.get_state(), digits.getstate()])
    expected = [torch.randn(5, generator=generator).tolist(), numbers.normal(size=5).tolist(), digits.gauss(0, 1)]
    states = load_state(tmp_path / "state")
    for part, restore, state in zip(
        (generator, numbers, digits), ("set_state", "set_state", "setstate"), states, strict=True
    ):
        getattr(part, restore)(state)
    assert [torch.randn(5, generator=generator).tolist(), numbers.normal(size=5).tolist(), digits.gauss(0, 1)] == (
        expected
    )


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, b"bytes", print, torch.float32, 1j, [{"a": (object(),)}], {object(): 1}]
)
def test_what_would_need_pickle_is_refused_and_nothing_is_written(value, tmp_path):
    with pytest.raises(TypeError, match="cannot be saved without pickle"):
        save_state(tmp_path / "state", {"fine": torch.ones(2), "other": value})
    assert not list(tmp_path.iterdir())


def _written(file, text):
    save_file({"0": torch.ones(2)}, file, metadata={"state": text} if text is not None else None)


DAMAGES = {
    "missing": lambda file: None,
    "a folder": lambda file: file.mkdir(),
    "empty": lambda file: file.write_bytes(b""),
    "a pickle": lambda file: torch.save({"a": 1}, file),
    "no text": lambda file: _written(file, None),
    "no JSON": lambda file: _written(file, "{"),
    "a tensor that is not there": lambda file: _written(file, json.dumps({"tensor": "1"})),
    "an unknown kind": lambda file: _written(file, json.dumps({"set": [["a", 1]]})),
    "two kinds": lambda file: _written(file, json.dumps({"tensor": "0", "array": "0"})),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_no_state_is_refused_by_name(damage, tmp_path):
    file = tmp_path / "state.safetensors"
    DAMAGES[damage](file)
    with pytest.raises(CheckpointError, match=r"state\.safetensors is no state of a training run: \w+"):
        load_state(file)


def test_a_state_that_was_cut_off_is_refused(tmp_path):
    file = tmp_path / "state"
    save_state(file, {"weights": torch.ones(100), "step": 3})
    whole = file.read_bytes()
    for size in range(0, len(whole), 37):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            load_state(file)
