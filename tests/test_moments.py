"""A second moment is a sum: whatever the order, the batches or the parts, it is that of the stacked features."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from hf_esc.errors import NonFiniteError
from hf_esc.features.moments import SecondMoment


def features(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moment_of(*batches: torch.Tensor) -> SecondMoment:
    moment = SecondMoment(batches[0].shape[1])
    for batch in batches:
        moment.update(batch)
    return moment


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 999), st.lists(st.integers(0, 40), max_size=5))
def test_any_order_in_any_batches_is_the_moment_of_the_stack(n, d, seed, cuts):
    z = features(n, d, seed)
    shuffled = z[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
    bounds = [0, *sorted(min(cut, n) for cut in cuts), n]
    streamed = moment_of(*(shuffled[start:stop] for start, stop in pairwise(bounds)))
    torch.testing.assert_close(streamed.matrix, z.T @ z, rtol=1e-12, atol=1e-12)
    assert streamed.n == n


@given(n=st.integers(0, 20), m=st.integers(0, 20), d=st.integers(1, 8), seed=st.integers(0, 999))
def test_merging_is_concatenating(n, m, d, seed):
    a, b = features(n, d, seed), features(m, d, seed + 1)
    merged, whole = moment_of(a).merge(moment_of(b)), moment_of(torch.cat([a, b]))
    torch.testing.assert_close(merged.matrix, whole.matrix, rtol=1e-12, atol=1e-12)
    assert merged.n == whole.n == n + m


def test_merging_leaves_the_other_as_it_was():
    other = moment_of(features(5, 3, 1))
    before = other.matrix.clone()
    moment_of(features(5, 3)).merge(other).update(features(5, 3, 2))
    assert torch.equal(other.matrix, before)
    assert other.n == 5


def test_a_small_number_by_hand():
    moment = moment_of(torch.tensor([[1.0, 2.0], [3.0, -1.0]]))
    assert moment.matrix.tolist() == [[10.0, -1.0], [-1.0, 5.0]]
    assert (moment.n, moment.dim) == (2, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_features_of_any_precision_are_summed_in_float64(dtype):
    # A mean far from zero: in the precision of the features, the sum would lose what tells them apart.
    z = (features(300, 6) + 100).to(dtype)
    moment = moment_of(*z.split(7))
    exact = z.double().T @ z.double()
    assert moment.matrix.dtype == torch.float64
    assert ((moment.matrix - exact).abs() / exact).max() < 1e-13
    assert (((z.T @ z).double() - exact).abs() / exact).max() > 1e-8


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_batch_that_is_not_finite_is_refused_whole_and_its_row_named(value):
    moment = moment_of(features(10, 4))
    before = moment.matrix.clone()
    bad = features(6, 4, 1)
    bad[3, 2] = bad[5, 0] = value
    with pytest.raises(NonFiniteError, match=r"2 of the 6 features .* row 3, feature 13 of the stream"):
        moment.update(bad)
    assert torch.equal(moment.matrix, before)
    assert moment.n == 10


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 4, 1), (4,)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"shape \(N, 4\), not"):
        SecondMoment(4).update(torch.zeros(shape))


def test_there_is_at_least_one_dimension():
    with pytest.raises(ValueError, match="`dim` is 0"):
        SecondMoment(0)


def test_moments_of_other_dimensions_do_not_merge():
    with pytest.raises(ValueError, match="of 3 dimensions cannot be merged into one of 4"):
        SecondMoment(4).merge(SecondMoment(3))


def test_the_state_comes_back_bit_for_bit(tmp_path):
    moment = moment_of(features(9, 5))
    file = tmp_path / "moment.safetensors"
    moment.save(file)
    for other in (SecondMoment(5).load_state_dict(moment.state_dict()), SecondMoment.load(file)):
        assert torch.equal(other.matrix, moment.matrix)
        assert other.n == 9
        # It goes on by itself: what it sees later is not added to the first.
        other.update(features(3, 5, 1))
    torch.testing.assert_close(moment.matrix, features(9, 5).T @ features(9, 5))


def _state(**changes) -> dict[str, torch.Tensor]:
    return {"matrix": torch.eye(3, dtype=torch.float64), "n": torch.tensor(4)} | changes


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"matrix": torch.eye(3)}, "keys 'matrix' and 'n'"),
        (_state(mean=torch.zeros(3)), "keys 'matrix' and 'n'"),
        (_state(matrix=torch.eye(4)), r"shape \(4, 4\), not \(3, 3\)"),
        (_state(matrix=torch.full((3, 3), torch.nan)), "finite and symmetric"),
        (_state(matrix=torch.eye(3).roll(1, 0)), "finite and symmetric"),
        (_state(n=torch.tensor(-1)), "count of 0 or more"),
    ],
    ids=["no count", "too much", "shape", "not finite", "not symmetric", "negative count"],
)
def test_what_is_no_state_is_refused_and_nothing_taken_over(state, message):
    moment = moment_of(features(2, 3))
    before = moment.matrix.clone()
    with pytest.raises(ValueError, match=message):
        moment.load_state_dict(state)
    assert torch.equal(moment.matrix, before)
    assert moment.n == 2


def test_a_file_without_a_moment_is_refused(tmp_path):
    save_file({"weight": torch.eye(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="'matrix' and 'n', not"):
        SecondMoment.load(tmp_path / "other.safetensors")
