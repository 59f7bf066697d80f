"""The layer is an orthogonal projection, in any layout and precision, or it is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hf_esc.errors import CheckpointError
from hf_esc.modeling.projection import LowRankFactor, MaskedFactor, Projection, build_factor, disabled, product


def orthonormal(d: int, k: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(d, k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).Q


def projection_of(basis: torch.Tensor, axis: int = -1) -> Projection:
    return Projection(basis.shape[0], [LowRankFactor.of(basis)], axis)


def masked(d: int = 6, zeros: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> MaskedFactor:
    """A factor whose mask has that many zeros."""
    mask = torch.ones(d * d)
    mask[torch.randperm(d * d, generator=torch.Generator().manual_seed(seed))[:zeros]] = 0
    return MaskedFactor.of(orthonormal(d, d, seed).to(dtype), mask.reshape(d, d))


ranks = st.integers(2, 24).flatmap(lambda d: st.tuples(st.just(d), st.integers(1, d - 1)))


@given(ranks, st.integers(0, 9999))
def test_it_is_an_orthogonal_projection_of_trace_d_minus_k(rank, seed):
    d, k = rank
    u = orthonormal(d, k, seed)
    layer = projection_of(u)
    p = layer(torch.eye(d, dtype=torch.float64))
    torch.testing.assert_close(p, p.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer(p), p, rtol=0, atol=1e-12)
    assert p.trace().item() == pytest.approx(d - k, abs=1e-10)
    assert layer(u.T).abs().max() < 1e-12  # it annihilates its basis
    outside = torch.linalg.svd(u, full_matrices=True).U[:, k:].T
    torch.testing.assert_close(layer(outside), outside, rtol=0, atol=1e-12)


def test_a_small_number_by_hand():
    layer = projection_of(torch.tensor([[0.6], [0.8]]))
    torch.testing.assert_close(layer(torch.tensor([[5.0, 0.0]])), torch.tensor([[3.2, -2.4]]))


@pytest.mark.parametrize("shape", [(2, 6), (2, 5, 6), (6,)])
def test_features_lie_along_the_last_axis_of_any_shape(shape):
    u, x = orthonormal(6, 2), torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(projection_of(u)(x), x - x @ u @ u.T)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_features_of_a_convolution_lie_along_axis_1_and_keep_their_strides(layout):
    u = orthonormal(6, 2)
    x = torch.randn(3, 6, 4, 5, dtype=torch.float64).contiguous(memory_format=layout)
    projected = projection_of(u, axis=1)(x)
    torch.testing.assert_close(projected.movedim(1, -1), projection_of(u)(x.movedim(1, -1)))
    assert projected.stride() == x.stride()


def test_disabled_or_of_rank_0_it_passes_on_the_very_tensor():
    x = torch.randn(2, 6)
    layer = projection_of(orthonormal(6, 2).float())
    with disabled([layer]):
        assert layer(x) is x
    assert layer(x) is not x
    assert Projection(6)(x) is x


def test_no_optimizer_sees_it_and_it_passes_gradients_along():
    layer = projection_of(orthonormal(6, 2).float())
    assert list(layer.parameters()) == []
    assert list(layer.state_dict()) == ["factors.0.basis"]
    x = torch.randn(2, 6, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer(torch.ones(2, 6)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_leaves_the_basis_in_float32_and_no_more_behind_than_its_rounding(dtype):
    basis = orthonormal(64, 3).float()
    layer = nn.Sequential(projection_of(basis)).to(dtype)[0]
    assert torch.equal(layer.factors[0].basis, basis)
    x = (1000 * basis.T + torch.randn(3, 64, generator=torch.Generator().manual_seed(0))).to(dtype)
    projected = layer(x)
    assert projected.dtype == dtype
    assert (projected.float() @ basis).abs().max() < 2 * torch.finfo(dtype).eps
    # A basis in half precision would leave a part of the thousand behind.
    rough = basis.to(dtype).float()
    assert ((x.float() - x.float() @ rough @ rough.T) @ basis).abs().max() > 20 * torch.finfo(dtype).eps


def test_casting_to_float64_takes_the_basis_along():
    assert projection_of(orthonormal(6, 2).float()).double().factors[0].basis.dtype == torch.float64


def test_in_front_of_a_head_only_the_first_argument_is_projected():
    layer = projection_of(orthonormal(6, 2).float())
    x, other = torch.randn(2, 6), torch.randn(2, 6)
    args = layer.pre_hook(nn.Identity(), (x, other))
    assert torch.equal(args[0], layer(x))
    assert args[1] is other


# What is no projection.


def test_a_fresh_one_is_not_finite_and_says_so():
    with pytest.raises(CheckpointError, match=r"is not finite.*would not be erased"):
        Projection(6, [LowRankFactor(6, 2)]).check()


@pytest.mark.parametrize(
    ("basis", "message"),
    [
        (torch.zeros(6, 0), "rank 0: it erases nothing"),
        (torch.zeros(6, 2), "orthonormal"),
        (orthonormal(6, 2).float() * 1.001, "off the identity by 0.002"),
        (orthonormal(6, 1).float().expand(6, 2), "off the identity by 1"),
        (orthonormal(6, 2).float().index_fill(0, torch.tensor(3), torch.inf), "is not finite"),
    ],
    ids=["rank 0", "zeros", "too long", "twice the same", "infinite"],
)
def test_a_basis_that_is_not_orthonormal_and_finite_is_refused(basis, message):
    with pytest.raises(CheckpointError, match=f"^Factor 0 of the third {message}|^Factor 0 of the third .*{message}"):
        projection_of(basis).check("The third")


def test_float32_rounding_passes_the_check_at_any_size():
    projection_of(orthonormal(2048, 1000).float()).check()


@pytest.mark.parametrize("good", [LowRankFactor.of(orthonormal(6, 2).float()), masked(dtype=torch.float32)], ids=str)
def test_a_state_that_is_no_projection_does_not_load(good):
    fresh = build_factor(6, good.config())
    fresh.load_state_dict(good.state_dict())
    for name, tensor in good.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor)
    state = good.state_dict()
    for bad in (torch.zeros_like(good.basis), torch.full_like(good.basis, torch.nan), orthonormal(6, 3).float()):
        with pytest.raises(RuntimeError, match="basis"):
            build_factor(6, good.config()).load_state_dict(state | {"basis": bad})
    for name in state:
        with pytest.raises(RuntimeError, match="Missing key"):
            build_factor(6, good.config()).load_state_dict({key: state[key] for key in state if key != name})


# Masks.


@given(st.integers(2, 12), st.integers(1, 20), st.integers(0, 9999))
def test_a_masked_factor_is_the_definition(d, zeros, seed):
    factor = masked(d, min(zeros, d * d - 1), seed)
    u = factor.basis * factor.mask
    z = torch.randn(3, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(factor(z), z @ (u @ u.T), rtol=0, atol=1e-12)
    torch.testing.assert_close(product([factor], d), product([factor], d).T, rtol=0, atol=1e-12)


def test_a_mask_of_ones_erases_nothing_and_is_refused():
    ones = MaskedFactor.of(orthonormal(6, 6), torch.ones(6, 6))
    torch.testing.assert_close(product([ones], 6), torch.eye(6).double())
    with pytest.raises(CheckpointError, match="a mask of ones: it erases nothing"):
        ones.check()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(6, 6), "a mask of zeros: it leaves no feature"),
        (torch.full((6, 6), 0.5), "a mask that is not of zeros and ones"),
        (torch.eye(6) * 2, "a mask that is not of zeros and ones"),
        (torch.eye(6) * torch.nan, "a mask that is not of zeros and ones"),
        (torch.eye(5), r"should both be \(d, d\)"),
    ],
    ids=["zeros", "halves", "two", "nan", "shape"],
)
def test_a_mask_that_is_none_is_refused(mask, message):
    with pytest.raises(CheckpointError, match=message):
        MaskedFactor.of(orthonormal(6, 6).float(), mask).check()


def test_a_masked_factor_needs_a_complete_orthonormal_basis():
    mask = masked().mask
    for basis in (orthonormal(6, 6) * 1.01, torch.zeros(6, 6)):
        with pytest.raises(CheckpointError, match="orthonormal"):
            MaskedFactor.of(basis, mask).check()


def test_fresh_factors_give_no_answer_and_are_refused():
    for config in ({"type": "low_rank", "rank": 2}, {"type": "masked"}):
        factor = build_factor(6, config)
        assert factor(torch.ones(2, 6)).isnan().all()
        with pytest.raises(CheckpointError):
            factor.check()


@pytest.mark.parametrize("config", [{}, {"type": "low_rank"}, {"type": "low_rank", "rank": "2"}, {"type": "rotated"}])
def test_an_unknown_factor_is_refused(config):
    with pytest.raises(CheckpointError, match=r"does not know|without its rank"):
        build_factor(6, config)


@given(st.lists(st.sampled_from(["low_rank", "masked"]), min_size=1, max_size=4), st.integers(0, 9999))
def test_factors_compose_in_their_order(kinds, seed):
    """Whatever the order, what reaches the head is the product of the factors, the last one leftmost."""
    factors = [
        LowRankFactor.of(orthonormal(6, 2, seed + i)) if kind == "low_rank" else masked(6, 7, seed + i)
        for i, kind in enumerate(kinds)
    ]
    expected = torch.eye(6, dtype=torch.float64)
    for factor in factors:
        expected = product([factor], 6) @ expected
    torch.testing.assert_close(product(factors, 6), expected, rtol=0, atol=1e-10)
    z = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(Projection(6, factors)(z), z @ expected.T, rtol=0, atol=1e-10)


def test_half_precision_leaves_a_masked_factor_as_it_was():
    factor = masked(dtype=torch.float32)
    basis, mask = factor.basis.clone(), factor.mask.clone()
    layer = nn.Sequential(Projection(6, [factor])).to(torch.bfloat16)[0]
    assert torch.equal(layer.factors[0].basis, basis)
    assert torch.equal(layer.factors[0].mask, mask)
    assert layer(torch.ones(2, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16
