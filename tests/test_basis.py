"""The streamed basis is that of the singular value decomposition, and a rank is exact or refused."""

import math
import re
from decimal import Decimal
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_esc.errors import NonFiniteError, RankError
from hf_esc.features.basis import (
    check_rank,
    join_basis,
    principal_directions,
    rank_from_percentage,
    remaining_directions,
    smallest_percentage,
    spanned_directions,
)
from hf_esc.features.moments import SecondMoment


def features(n: int, d: int, seed: int) -> torch.Tensor:
    """Features with a mean and a spread that differs by direction, as a network's: no two singular values tie."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, dtype=torch.float64, generator=generator) * torch.logspace(0.5, -0.5, d).double() + 0.5


def moment(z: torch.Tensor) -> torch.Tensor:
    return SecondMoment(z.shape[1]).update(z).matrix


def projection(u: torch.Tensor) -> torch.Tensor:
    return torch.eye(u.shape[0], dtype=torch.float64) - u.double() @ u.double().T


shapes = st.tuples(st.integers(3, 20), st.integers(2, 40), st.integers(0, 9999))  # d, N, seed


@given(shapes, st.data())
def test_directions_are_the_left_singular_vectors_of_the_stacked_features(shape, data):
    d, n, seed = shape
    z = features(n, d, seed)
    k = data.draw(st.integers(1, min(d - 1, n)))
    directions = principal_directions(moment(z), k)
    singular = torch.linalg.svd(z.T, full_matrices=False).U[:, :k]
    torch.testing.assert_close((directions.T @ singular).abs(), torch.eye(k).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(directions.T @ directions, torch.eye(k).double(), rtol=0, atol=1e-12)
    # The sign is fixed: the entry of largest size is positive.
    assert (directions.gather(0, directions.abs().argmax(dim=0, keepdim=True)) > 0).all()


def test_a_large_mean_and_near_ties_need_float64():
    # The eleven leading directions but the mean's are hardly larger than the rest.
    z = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0)) + 100
    z[:, :11] *= 1.02
    exact = projection(torch.linalg.svd(z.double().T, full_matrices=False).U[:, :11])
    streamed = SecondMoment(64)
    for batch in z.split(32):
        streamed.update(batch)
    single = sum(batch.T @ batch for batch in z.split(32))
    assert (projection(principal_directions(streamed.matrix, 11)) - exact).abs().max() < 1e-9
    assert (projection(principal_directions(single, 11)) - exact).abs().max() > 1e-3


@given(d=st.integers(8, 30), n=st.integers(1, 6), seed=st.integers(0, 9999), data=st.data())
def test_with_fewer_images_than_dimensions_what_they_do_not_touch_stays(d, n, seed, data):
    z = features(n, d, seed)
    k = data.draw(st.integers(1, n))
    p = projection(principal_directions(moment(z), k))
    outside = torch.linalg.svd(z.T, full_matrices=True).U[:, n:]  # no feature has a part along these
    torch.testing.assert_close(p @ outside, outside, rtol=0, atol=1e-9)
    assert p.trace().item() == pytest.approx(d - k)  # U[:, k:] of the reduced decomposition would give n - k


@given(st.integers(16, 80), st.integers(1, 14), st.integers(0, 9999))
def test_few_images_have_the_directions_of_the_whole_decomposition(d, n, seed):
    """Where they span at most an eighth of the dimensions, another way finds them; around that, either does."""
    second_moment = moment(features(n, d, seed))
    found = spanned_directions(second_moment)
    vectors = torch.linalg.eigh(second_moment).eigenvectors.flip(1)[:, :n]
    assert found.shape == (d, n)
    torch.testing.assert_close((found.T @ vectors).abs(), torch.eye(n).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.T @ found, torch.eye(n).double(), rtol=0, atol=1e-12)


@given(d=st.integers(8, 30), n=st.integers(1, 6), seed=st.integers(0, 9999), excess=st.integers(1, 2))
def test_a_rank_beyond_the_span_is_refused(d, n, seed, excess):
    with pytest.raises(RankError, match=f"span {n} directions.*`rank={n}` or less"):
        principal_directions(moment(features(n, d, seed)), n + excess)


def test_features_of_zero_have_no_direction():
    with pytest.raises(RankError, match="all zero"):
        principal_directions(torch.zeros(4, 4).double(), 1)


def test_a_moment_that_is_not_finite_has_no_directions():
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        principal_directions(torch.full((3, 3), torch.nan).double(), 1)


# Erasing twice. The old basis goes through float32, as a checkpoint stores it.


@given(st.integers(6, 20), st.integers(0, 9999), st.booleans(), st.booleans(), st.data())
def test_a_second_erasure_multiplies_the_projections(d, seed, stored, taken_after, data):
    k1 = data.draw(st.integers(1, d // 2 - 1))
    k2 = data.draw(st.integers(1, d // 2 - 1))
    first, second = features(3 * d, d, seed), features(3 * d, d, seed + 1)
    u1 = join_basis(torch.empty(d, 0), remaining_directions(torch.empty(d, 0), moment(first)), k1)
    u1 = u1.float() if stored else u1
    p1 = projection(u1)
    seen = moment(second @ p1 if taken_after else second)
    joined = join_basis(u1, remaining_directions(u1, seen), k2)
    # The definition: P2 belongs to the leading singular vectors of what P1 leaves of the second request.
    p2 = projection(torch.linalg.svd(p1 @ second.T, full_matrices=False).U[:, :k2])
    atol = 1e-6 if stored else 1e-8
    torch.testing.assert_close(projection(joined), p2 @ p1, rtol=0, atol=atol)
    torch.testing.assert_close(joined.double().T @ joined.double(), torch.eye(k1 + k2).double(), rtol=0, atol=atol)
    torch.testing.assert_close(joined[:, :k1], u1.double())


@given(seed=st.integers(0, 9999), stored=st.booleans(), taken_after=st.booleans())
def test_null_vectors_do_not_let_the_old_directions_in_again(seed, stored, taken_after):
    # Five images, three directions of which are gone: two are left, and the rest of the space is none of theirs.
    z = features(5, 12, seed)
    u1 = principal_directions(moment(z), 3)
    u1 = u1.float() if stored else u1
    left = remaining_directions(u1, moment(z @ projection(u1) if taken_after else z))
    assert left.shape == (12, 2)
    assert (u1.double().T @ left).abs().max() < 1e-6
    with pytest.raises(RankError, match="Rank 3 was asked for, and the forget features span 2"):
        join_basis(u1, left, 3)


def test_what_is_erased_already_has_no_direction_left():
    z = features(4, 12, 0)
    u1 = principal_directions(moment(z), 4)
    with pytest.raises(RankError, match="erased already"):
        join_basis(u1, remaining_directions(u1, moment(z)), 1)


def test_erasing_again_and_again_leaves_a_feature():
    u = principal_directions(moment(features(30, 6, 0)), 4)
    left = remaining_directions(u, moment(features(30, 6, 1)))
    assert join_basis(u, left, 1).shape == (6, 5)
    with pytest.raises(RankError, match="4 of 6 directions are erased already, and `rank=2`"):
        join_basis(u, left, 2)


# How many.


@st.composite
def percentages(draw, least: int, most: int) -> tuple[Decimal, int]:
    """A dimension and, in thousandths, a percentage of it that is at least `least` and less than `most` directions."""
    d = draw(st.integers(max(2, most), 20_000))
    thousandths = draw(
        st.integers(math.ceil(Fraction(100_000 * least, d)), math.ceil(Fraction(100_000 * most, d)) - 1)
    )
    return Decimal(thousandths) / 1000, d


@given(percentages(1, 2) | percentages(2, 400))
def test_a_percentage_is_exact(case):
    p, d = case
    exact = math.floor(Fraction(str(p)) * d / 100)
    assert rank_from_percentage(p, d) == rank_from_percentage(float(p), d) == rank_from_percentage(str(p), d) == exact


def test_percentages_of_the_paper_and_some_that_binary_floating_point_gets_wrong():
    assert [rank_from_percentage(1.5, d) for d in (96, 512, 768)] == [1, 7, 11]
    assert [rank_from_percentage(p, d) for p, d in ((0.57, 10_000), (32.3, 1000))] == [57, 323]
    assert [math.floor(p * d / 100) for p, d in ((0.57, 10_000), (32.3, 1000))] == [56, 322]


@given(percentages(0, 1).filter(lambda case: case[0] > 0))
def test_a_percentage_of_rank_0_is_refused_with_one_that_works(case):
    p, d = case
    with pytest.raises(RankError, match="rank 0, which erases nothing") as refusal:
        rank_from_percentage(p, d)
    advised = Decimal(re.search(r"Use `p=([\d.]+)` or more, or `rank=1`", str(refusal.value))[1])
    assert advised == smallest_percentage(d)
    assert Fraction(advised) * d >= 100  # rank 1 at least
    assert (Fraction(advised) - Fraction(1, 100)) * d < 100  # and no smaller one does


@pytest.mark.parametrize("p", [0, -1.5, 100, 100.5, float("nan"), float("inf"), "a lot", None, True, "1.5%"])
def test_what_is_no_percentage_between_0_and_100_is_refused(p):
    with pytest.raises(RankError, match=re.escape(f"{p}")):
        rank_from_percentage(p, 768)


@pytest.mark.parametrize(
    ("rank", "message"),
    [(0, "erases nothing.* 1 to 15"), (-1, "erases nothing"), (16, "leaves no feature.* 1 to 15"), (99, "no feature")],
)
def test_a_rank_outside_of_1_to_d_is_refused(rank, message):
    with pytest.raises(RankError, match=message):
        check_rank(rank, 16)


@pytest.mark.parametrize("rank", [True, 1.0, "1", None])
def test_a_rank_is_a_whole_number(rank):
    with pytest.raises(RankError, match="whole number"):
        check_rank(rank, 16)
