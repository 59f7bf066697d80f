"""The layer is an orthogonal projection, in any layout and precision, or it is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hf_esc.errors import CheckpointError
from hf_esc.projection import Projection


def orthonormal(d: int, k: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(d, k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).Q


def projection_of(basis: torch.Tensor, axis: int = -1) -> Projection:
    layer = Projection(*basis.shape, axis)
    layer.basis = basis
    return layer


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
    layer.thread.times_disabled += 1
    assert layer(x) is x
    assert Projection(6, 0)(x) is x


def test_no_optimizer_sees_it_and_it_passes_gradients_along():
    layer = projection_of(orthonormal(6, 2).float())
    assert list(layer.parameters()) == []
    assert list(layer.state_dict()) == ["basis"]
    x = torch.randn(2, 6, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer(torch.ones(2, 6)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_leaves_the_basis_in_float32_and_no_more_behind_than_its_rounding(dtype):
    basis = orthonormal(64, 3).float()
    layer = nn.Sequential(projection_of(basis)).to(dtype)[0]
    assert torch.equal(layer.basis, basis)
    x = (1000 * basis.T + torch.randn(3, 64, generator=torch.Generator().manual_seed(0))).to(dtype)
    projected = layer(x)
    assert projected.dtype == dtype
    assert (projected.float() @ basis).abs().max() < 2 * torch.finfo(dtype).eps
    # A basis in half precision would leave a part of the thousand behind.
    rough = basis.to(dtype).float()
    assert ((x.float() - x.float() @ rough @ rough.T) @ basis).abs().max() > 20 * torch.finfo(dtype).eps


def test_casting_to_float64_takes_the_basis_along():
    assert projection_of(orthonormal(6, 2).float()).double().basis.dtype == torch.float64


def test_in_front_of_a_head_only_the_first_argument_is_projected():
    layer = projection_of(orthonormal(6, 2).float())
    x, other = torch.randn(2, 6), torch.randn(2, 6)
    args = layer.pre_hook(nn.Identity(), (x, other))
    assert torch.equal(args[0], layer(x))
    assert args[1] is other


# What is no projection.


def test_a_fresh_one_is_not_finite_and_says_so():
    with pytest.raises(CheckpointError, match=r"is not finite.*would not be erased"):
        Projection(6, 2).check()


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
    with pytest.raises(CheckpointError, match=f"^The third {message}|^The third .*{message}"):
        projection_of(basis).check("The third")


def test_float32_rounding_passes_the_check_at_any_size():
    projection_of(orthonormal(2048, 1000).float()).check()


def test_a_state_that_is_no_projection_does_not_load():
    good = projection_of(orthonormal(6, 2).float())
    fresh = Projection(6, 2)
    fresh.load_state_dict(good.state_dict())
    assert torch.equal(fresh.basis, good.basis)
    for bad in (torch.zeros(6, 2), torch.full((6, 2), torch.nan), orthonormal(6, 3).float()):
        with pytest.raises(RuntimeError, match="basis"):
            Projection(6, 2).load_state_dict({"basis": bad})
    with pytest.raises(RuntimeError, match="Missing key"):
        Projection(6, 2).load_state_dict({})
