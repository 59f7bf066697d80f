"""ZRF is 1 minus a divergence: bounded, symmetric, and 0 for the same distributions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from hf_esc.errors import MetricError, NonFiniteError
from hf_esc.evaluation.zrf import jensen_shannon, zero_retrain_forgetting

seeds, bases = st.integers(0, 999), st.sampled_from([2, "e"])
scales = st.sampled_from([0.01, 1.0, 20.0, 1e4, 1e38, 1e308])


def logits(n: int, c: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(n, c, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).clamp(
        -1.7, 1.7
    )


@given(st.integers(1, 9), st.integers(2, 12), seeds, scales, scales, bases)
def test_it_is_bounded_and_symmetric(n, c, seed, scale, other_scale, base):
    a, b = logits(n, c, seed, scale), logits(n, c, seed + 1, other_scale)
    js = jensen_shannon(a, b, base=base)
    assert ((js >= 0) & (js <= (1 if base == 2 else math.log(2)))).all()
    torch.testing.assert_close(js, jensen_shannon(b, a, base=base), rtol=1e-12, atol=1e-15)
    assert zero_retrain_forgetting(a, b, base=base).zrf == pytest.approx(1 - js.mean().item(), abs=1e-15)


def test_rounding_does_not_leave_the_bounds():
    a = logits(200, 10, 0)
    assert jensen_shannon(a, a + 1e-8 * logits(200, 10, 1)).min() >= 0
    never = torch.full_like(a, -1e4)
    assert jensen_shannon(torch.cat([a, never], dim=1), torch.cat([never, logits(200, 10, 2)], dim=1)).max() <= 1


@given(st.integers(1, 9), st.integers(2, 12), seeds, scales, bases)
def test_the_random_network_itself_is_at_1_to_the_bit(n, c, seed, scale, base):
    a = logits(n, c, seed, scale)
    assert zero_retrain_forgetting(a, a.clone(), base=base).zrf == 1


@given(st.integers(2, 12), seeds, bases, st.floats(-50, 50), st.floats(-50, 50))
def test_a_constant_on_all_logits_of_an_image_changes_nothing(c, seed, base, shift, other_shift):
    a, b = logits(4, c, seed), logits(4, c, seed + 1)
    shifted = jensen_shannon(a + shift, b + other_shift, base=base)
    torch.testing.assert_close(shifted, jensen_shannon(a, b, base=base), rtol=1e-9, atol=1e-12)


@given(st.integers(2, 12), seeds, st.sampled_from([0.1, 1.0, 20.0]))
def test_it_is_scipy_s(c, seed, scale):
    a, b = logits(5, c, seed, scale), logits(5, c, seed + 1, scale)
    for base in (2, "e"):
        expected = jensenshannon(a.softmax(1), b.softmax(1), axis=1, base=2 if base == 2 else None) ** 2
        assert jensen_shannon(a, b, base=base).tolist() == pytest.approx(expected, abs=1e-9)


@given(st.integers(2, 12), seeds)
def test_it_is_a_mean_over_images_in_any_order(c, seed):
    a, b = logits(6, c, seed), logits(6, c, seed + 1)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    whole = zero_retrain_forgetting(a, b).zrf
    assert zero_retrain_forgetting(a[order], b[order]).zrf == pytest.approx(whole)
    each = [zero_retrain_forgetting(a[i : i + 1], b[i : i + 1]).zrf for i in range(6)]
    assert sum(each) / 6 == pytest.approx(whole)


def test_numbers_by_hand():
    # p = (3/4, 1/4), q = (1/2, 1/2), m = (5/8, 3/8).
    a, b = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
    kl = 0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3), 0.5 * math.log(4 / 5) + 0.5 * math.log(4 / 3)
    natural, binary = zero_retrain_forgetting(a, b, base="e"), zero_retrain_forgetting(a, b)
    assert (natural.base, natural.images, binary.base, binary.images) == ("e", 1, 2, 1)
    assert natural.zrf == pytest.approx(1 - sum(kl) / 2)
    assert binary.zrf == pytest.approx(1 - sum(kl) / 2 / math.log(2))


def test_the_ends():
    sure, other = torch.tensor([[1e5, 0.0]]), torch.tensor([[0.0, 1e5]])
    assert zero_retrain_forgetting(sure, other).zrf == 0
    assert zero_retrain_forgetting(sure, other, base="e").zrf == pytest.approx(1 - math.log(2))
    # A sure model against one that says nothing: p = (1, 0, ...), q = 1 / C.
    c = 10
    even = torch.zeros(1, c)
    one = torch.eye(c)[:1] * 1e5
    m = (1 + 1 / c) / 2
    expected = 0.5 * math.log2(1 / m) + 0.5 * (math.log2(1 / c / m) / c + (c - 1) / c * math.log2(2))
    assert zero_retrain_forgetting(one, even).zrf == pytest.approx(1 - expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_logits_of_any_precision_are_compared_in_float64(dtype):
    a, b = (100 + logits(5, 4, 0, 0.5)).to(dtype), (100 + logits(5, 4, 1, 0.5)).to(dtype)
    assert zero_retrain_forgetting(a, b) == zero_retrain_forgetting(a.double(), b.double())


A, B = logits(5, 3, 0), logits(5, 3, 1)
NAN = A.where(A.max() > A, float("nan"))
REFUSED = {
    "no images": ((A[:0], B[:0]), {}, r"not \(0, 3\)"),
    "one class": ((A[:, :1], B[:, :1]), {}, r"C of 2 or more, not \(5, 1\)"),
    "other images": ((A, B[:4]), {}, r"model are \(5, 3\) and of the random network \(4, 3\)"),
    "other classes": ((A, B[:, :2]), {}, r"model are \(5, 3\) and of the random network \(5, 2\)"),
    "another base": ((A, B), {"base": 10}, 'should be 2 or "e", not 10'),
    "NaN": ((NAN, B), {}, "1 of the 5 images of the model are not finite"),
    "infinite": ((A, B / 0), {}, "5 of the 5 images of the random network are not finite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_compared_is_refused(case):
    arguments, options, message = REFUSED[case]
    with pytest.raises(NonFiniteError if "finite" in message else MetricError, match=message):
        zero_retrain_forgetting(*arguments, **options)
