"""Membership inference is at chance where nothing differs, and a count of pairs where something does."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score
from torch.nn import functional

from hf_esc.errors import MetricError, NonFiniteError
from hf_esc.evaluation.membership import attack_losses, cross_entropies, membership_inference


def exponential(n: int, seed: int, mean: float = 1.0) -> torch.Tensor:
    """Losses as a network has them: many small, few large."""
    return torch.empty(n, dtype=torch.float64).exponential_(1 / mean, generator=torch.Generator().manual_seed(seed))


def drawn(n: int, c: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, generator=generator), torch.randint(c, (n,), generator=generator)


# The loss


@given(st.integers(1, 20), st.integers(2, 12), st.integers(0, 999), st.sampled_from([0.1, 1, 30]))
def test_the_loss_is_the_cross_entropy(n, c, seed, scale):
    logits, labels = drawn(n, c, seed)
    logits = scale * logits
    expected = functional.cross_entropy(logits.double(), labels, reduction="none")
    torch.testing.assert_close(cross_entropies(logits, labels), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(cross_entropies(logits + 7, labels), expected, rtol=1e-4, atol=1e-4)


def test_losses_by_hand():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [np.log(3.0), 0.0, 0.0, 0.0]])
    assert cross_entropies(logits, torch.tensor([2, 0])).tolist() == pytest.approx([np.log(4), np.log(2)])


@pytest.mark.parametrize("size", [1e4, 1e38, 1.7e308])
def test_huge_logits_have_finite_losses(size):
    logits = torch.tensor([[size, -size, 0], [-size, size, 0], [size, size, size]], dtype=torch.float64)
    right, wrong, even = cross_entropies(logits, torch.tensor([0, 0, 0])).tolist()
    assert right == 0
    assert wrong == pytest.approx(2 * min(size, 1e300))
    assert even == pytest.approx(np.log(3))


def test_sure_predictions_keep_their_order():
    # In float32, and as log-softmax in float64, the losses of all of these but the first are 0.
    margins = torch.tensor([10.0, 40.0, 50.0, 100.0, 600.0])
    losses = cross_entropies(torch.stack([margins, torch.zeros(5)], dim=1), torch.zeros(5, dtype=torch.long))
    torch.testing.assert_close(losses, margins.double().neg().exp(), rtol=1e-4, atol=0)
    assert (losses.diff() < 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_logits_of_any_precision(dtype):
    logits, labels = (5 * drawn(30, 4)[0]).to(dtype), drawn(30, 4)[1]
    expected = functional.cross_entropy(logits.double(), labels, reduction="none")
    torch.testing.assert_close(cross_entropies(logits, labels.to(torch.int16)), expected)


# AUC and TPR


tied = st.lists(st.integers(0, 6), min_size=10, max_size=40)


@given(tied, tied)
def test_auc_is_the_share_of_pairs_that_are_won_and_half_of_those_that_are_tied(members, nonmembers):
    won = sum((a < b) + (a == b) / 2 for a in members for b in nonmembers)
    auc = attack_losses(torch.tensor(members), torch.tensor(nonmembers)).auc
    assert auc == pytest.approx(100 * won / (len(members) * len(nonmembers)), abs=1e-12)
    assert auc + attack_losses(torch.tensor(nonmembers), torch.tensor(members)).auc == pytest.approx(100)


@given(tied, st.lists(st.integers(0, 6), min_size=100, max_size=140))
def test_auc_and_tpr_stay_as_they_are_under_rising_functions(members, nonmembers):
    a, b = torch.tensor(members).double(), torch.tensor(nonmembers).double()
    before = attack_losses(a, b)
    for rising in (torch.exp, lambda losses: losses**3, lambda losses: 1e-9 * losses - 7):
        after = attack_losses(rising(a), rising(b))
        assert (after.auc, after.tpr_at_1_fpr) == (before.auc, before.tpr_at_1_fpr)


@given(
    st.lists(st.integers(0, 30), min_size=10, max_size=40), st.lists(st.integers(0, 60), min_size=100, max_size=450)
)
def test_tpr_is_the_best_of_all_thresholds_with_few_enough_false_positives(members, nonmembers):
    a, b = np.array(members), np.array(nonmembers)
    thresholds = [-1, *range(61)]
    best = max((a <= t).mean() for t in thresholds if (b <= t).sum() <= 0.01 * len(b))
    assert attack_losses(torch.tensor(a), torch.tensor(b)).tpr_at_1_fpr == pytest.approx(100 * best)


def test_tpr_by_hand():
    members = torch.tensor([0.0] * 3 + [1.5] * 4 + [2.5] * 5)
    # Of 100 non-members one may be taken for a member, of 199 one, of 200 two; tied ones all or none.
    found = [attack_losses(members, torch.arange(1.0, n + 1)).tpr_at_1_fpr for n in (99, 100, 199, 200)]
    assert found == [None, pytest.approx(100 * 7 / 12), pytest.approx(100 * 7 / 12), 100]
    tied_first = torch.cat([torch.tensor([1.0]), torch.arange(1.0, 100)])
    assert attack_losses(members, tied_first).tpr_at_1_fpr == 25


# Accuracy


def test_the_same_distribution_is_at_chance():
    attacks = [attack_losses(exponential(400, 2 * i), exponential(400, 2 * i + 1), seed=i) for i in range(30)]
    for name in ("accuracy", "auc"):
        found = torch.tensor([getattr(attack, name) for attack in attacks])
        assert found.mean().item() == pytest.approx(50, abs=1.5)  # and its standard error is 0.6 or less
        assert (found - 50).abs().max() < 12
    assert np.mean([attack.tpr_at_1_fpr for attack in attacks]) == pytest.approx(1, abs=0.5)


@given(st.integers(10, 60), st.integers(10, 60), st.integers(0, 999))
def test_losses_that_are_apart_are_told_apart(n, m, seed):
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.rand(n, generator=generator), 9 + torch.rand(m, generator=generator)
    apart, reversed_ = attack_losses(low, high, seed=seed), attack_losses(high, low, seed=seed)
    assert (apart.accuracy, apart.spread, apart.auc) == (100, 0, 100)
    assert (reversed_.accuracy, reversed_.auc) == (100, 0)  # which side is lower is learned
    assert (apart.members, apart.nonmembers, apart.drawn) == (n, m, min(n, m))


def test_losses_that_are_all_the_same_are_at_chance():
    same = torch.full((100,), 0.1)
    attack = attack_losses(same, same)
    assert (attack.accuracy, attack.spread, attack.auc, attack.tpr_at_1_fpr) == (50, 0, 50, 0)


@pytest.mark.parametrize("scale", [0.3, 1, 20])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_accuracy_is_that_of_scikit_learn_s_logistic_regression(scale, seed):
    """Where its own tolerance is fine enough for the losses, and the larger side is not drawn from."""
    members, nonmembers = scale * exponential(300, 0), scale * exponential(300, 1, mean=2)
    is_member = np.repeat([1, 0], 300)
    splits = StratifiedShuffleSplit(n_splits=5, test_size=0.1, random_state=seed)
    losses = torch.cat([members.sort().values, nonmembers.sort().values]).numpy()[:, None]
    expected = 100 * cross_val_score(LogisticRegression(tol=1e-8), losses, is_member, cv=splits)
    attack = attack_losses(members, nonmembers, seed=seed)
    assert (attack.accuracy, attack.spread) == (pytest.approx(expected.mean()), pytest.approx(expected.std()))
    assert 55 < attack.accuracy < 75


@pytest.mark.parametrize("scale", [1e-300, 1e-12, 1e-3, 1e3, 1e38, 1e290])
def test_losses_of_any_scale_are_told_apart(scale):
    # scikit-learn's own L-BFGS is at 50 % for 1e-3 and below: its first step is within its tolerance.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attack = attack_losses(scale * exponential(300, 0), scale * (exponential(300, 1) + 1.5))
    assert attack.accuracy > 75


def test_one_huge_loss_does_not_hide_the_others():
    nonmembers = exponential(300, 1) + 5
    nonmembers[7] = 1e6
    assert attack_losses(exponential(300, 0).clamp(max=4), nonmembers).accuracy == 100
    nonmembers[7] = 1e10  # at the limit of float64, and still nothing that a user should read warnings about
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert attack_losses(exponential(300, 0).clamp(max=4), nonmembers).accuracy > 80


def test_the_larger_side_is_drawn_from_and_the_seed_decides():
    members, nonmembers = exponential(600, 0), exponential(50, 1, mean=2)
    accuracies = [attack_losses(members, nonmembers, seed=seed).accuracy for seed in range(6)]
    assert accuracies == [attack_losses(members, nonmembers, seed=seed).accuracy for seed in range(6)]
    assert len(set(accuracies)) > 1
    # 600 to 50, unbalanced, the attack would call all of them members: 92 %.
    assert max(accuracies) < 85
    assert max(attack_losses(nonmembers, members, seed=seed).accuracy for seed in range(6)) < 85
    unseen = torch.get_rng_state()
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    attack_losses(members, nonmembers)
    assert torch.equal(torch.get_rng_state(), unseen)
    assert (np.random.get_state()[1] == before).all()


def test_the_order_of_the_rows_does_not_matter():
    sides = exponential(300, 0), exponential(120, 1, mean=2)
    generator = torch.Generator().manual_seed(7)
    turned = [side[torch.randperm(len(side), generator=generator)] for side in sides]
    assert attack_losses(*turned) == attack_losses(*sides)


def test_the_draw_is_from_all_of_the_larger_side():
    # Of the members, those that stand first are as the non-members and the others are not.
    members = torch.cat([exponential(50, 0), exponential(950, 1) + 30])
    assert attack_losses(members, exponential(50, 2)).accuracy > 85
    assert attack_losses(exponential(50, 2), members).accuracy > 85


# Logits


def test_it_is_the_attack_on_the_losses_of_each_side():
    (a, a_labels), (b, b_labels) = drawn(120, 5, 0), drawn(150, 5, 1)
    whole = membership_inference(3 * a, a_labels, b, b_labels, seed=3)
    assert whole == attack_losses(cross_entropies(3 * a, a_labels), cross_entropies(b, b_labels), seed=3)
    assert whole != membership_inference(b, b_labels, 3 * a, a_labels, seed=3)
    assert (whole.members, whole.nonmembers, whole.drawn) == (120, 150, 120)


def test_a_network_that_memorised_is_found_out_and_one_that_did_not_is_not():
    logits, labels = drawn(400, 10)
    memorised = logits[:200] + 6 * functional.one_hot(labels[:200], 10)
    attack = membership_inference(memorised, labels[:200], logits[200:], labels[200:])
    assert attack.accuracy > 95
    assert attack.auc > 99
    assert attack.tpr_at_1_fpr > 90
    fresh = membership_inference(logits[:200], labels[:200], logits[200:], labels[200:])
    assert fresh.auc == pytest.approx(50, abs=7)


LOGITS, LABELS = drawn(20, 3)
NAN, INFINITE = LOGITS.clone(), LOGITS.clone()
NAN[3, 1], INFINITE[4, 0], INFINITE[5, 0] = float("nan"), float("inf"), -float("inf")
REFUSED = {
    "no members": ((LOGITS[:0], LABELS[:0], LOGITS, LABELS), r"logits of the members .* not \(0, 3\)"),
    "no non-members": ((LOGITS, LABELS, LOGITS[:0], LABELS[:0]), r"logits of the non-members .* not \(0, 3\)"),
    "too few": ((LOGITS, LABELS, LOGITS[:9], LABELS[:9]), r"10 non-members or more, .* \(9,\)"),
    "one class": ((LOGITS[:, :1], LABELS * 0, LOGITS[:, :1], LABELS * 0), r"C of 2 or more, not \(20, 1\)"),
    "one image": ((LOGITS[0], LABELS, LOGITS, LABELS), r"should be \(N, C\) .* not \(3,\)"),
    "two models": ((LOGITS, LABELS, LOGITS[:, :2], LABELS * 0), "of 3 classes and non-members of 2"),
    "fewer labels": ((LOGITS, LABELS[:-1], LOGITS, LABELS), r"20 members and labels of the shape \(19,\)"),
    "scores": ((LOGITS, LABELS, LOGITS, LABELS.double()), r"non-members and labels .* \(torch.float64\)"),
    "a label too high": ((LOGITS, LABELS + 1, LOGITS, LABELS), "labels of the members range from 1 to 3"),
    "a label below 0": ((LOGITS, LABELS, LOGITS, LABELS - 1), "labels of the non-members range from -1 to 1"),
    "NaN": ((NAN, LABELS, LOGITS, LABELS), "logits of 1 of the 20 members are not finite"),
    "infinite": ((LOGITS, LABELS, INFINITE, LABELS), "logits of 2 of the 20 non-members are not finite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_attacked_is_refused(case):
    arguments, message = REFUSED[case]
    with pytest.raises(NonFiniteError if "finite" in message else MetricError, match=message):
        membership_inference(*arguments)


@pytest.mark.parametrize(("losses", "message"), [(LOGITS, r"\(20, 3\)"), (NAN[:, 1], "1 of the 20 losses of members")])
def test_losses_that_are_none_are_refused(losses, message):
    with pytest.raises(ValueError, match=message):
        attack_losses(losses, LOGITS[:, 0])
