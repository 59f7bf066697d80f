"""The head behind a mask: Eq. 3 to 5 by definition, and the model's own logits where nothing is cut."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from hf_esc.erasure.wrapping import wrapped_copy
from hf_esc.features.head import head_weights
from hf_esc.features.sites import SiteGroup
from hf_esc.features.stream import stream_features
from hf_esc.modeling.projection import MaskedFactor
from hf_esc.training.masked_head import MaskedHead

from .tiny import batches, images, quietly, tiny
from .zoo import ZOO, timm_model

SEEDS = st.integers(0, 2**31)
TWO_HEADS = ZOO["deit-with-teacher"]  # on two tokens, averaged


def orthonormal(d: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).Q


def headed(model, batch, *, seed=0, after=None, **settings):
    """The masked head of a model with random bases, and what reaches it for a batch."""
    wrapped, _ = wrapped_copy(model, [batch])
    groups = [SiteGroup.from_dict(site) for site in wrapped.config.sites]
    [seen] = stream_features(wrapped.model, groups, [batch])
    bases = [orthonormal(group.dim, seed + index).float() for index, group in enumerate(groups)]
    none = [torch.empty(group.dim, 0) for group in groups]
    weights = head_weights(wrapped.model, groups, seen)
    head = MaskedHead(wrapped.model, groups, weights, bases, after or none, **({"tau": 0.7} | settings))
    return head, torch.cat(seen.features, dim=1), seen.logits


def plain(**settings):
    return headed(tiny(), {"pixel_values": images(6)}, **settings)


def random_mask(d: int, seed: int) -> torch.Tensor:
    return torch.rand(d, d, generator=torch.Generator().manual_seed(seed))


def erased_models():
    basis, mask = orthonormal(8, 5).float(), random_mask(8, 6) > 0.3
    low_rank = quietly(tiny(), batches(images(9)), rank=2)
    twice = wrapped_copy(low_rank, ())[0]
    twice.set_factors([[*twice.projections[0].factors, MaskedFactor.of(basis, mask)]], {})
    return {"plain": tiny(), "erased": low_rank, "masked": twice}


# What it computes.


@pytest.mark.parametrize("name", ["plain", "erased", "masked"])
def test_masks_of_ones_leave_the_models_logits(name):
    """Also of a model that is erased already: its projection has acted, and does not act twice."""
    model = erased_models()[name]
    head, z, logits = headed(model, {"pixel_values": images(6)})
    with torch.no_grad():
        torch.testing.assert_close(logits, model(images(6)).logits)
        for result in (head(z).logits, head.eval()(z).logits, head.logits(z), head.logits(z, list(head.masks))):
            torch.testing.assert_close(result, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["deit-with-teacher", "resnetv2_18", "efficientformerv2_s0", "efficientvim_m1"])
def test_heads_of_other_kinds_are_run_on_features_alone(name):
    """Two heads on two tokens, a convolution, two heads on the same features, and a weighted sum of several."""
    if name not in ZOO:
        pytest.importorskip("timm")
    spec = ZOO[name] if name in ZOO else timm_model(name)
    model = spec.build().eval()
    head, z, logits = headed(model, spec.inputs(4))
    with torch.no_grad():
        torch.testing.assert_close(head.logits(z, list(head.masks)), logits, rtol=1e-4, atol=1e-4)
        assert len(head.masks) == len(head.groups)


@given(seed=SEEDS, rank=st.integers(0, 3))
def test_it_is_g_of_u_m_u_m_transposed_z(seed, rank):
    """And what is projected out behind the mask stays out, whatever the mask."""
    after = orthonormal(8, seed + 1)[:, :rank]
    head, z, _ = plain(seed=seed, after=[after])
    mask = random_mask(8, seed)
    u_m = head.bases[0].double() * mask
    expected = z.double() @ u_m @ u_m.T @ (torch.eye(8).double() - after @ after.T)
    [[linear]] = head.heads
    expected = expected @ linear.weight.double().flatten(1).T + linear.bias.double()
    torch.testing.assert_close(head.logits(z, [mask]).double(), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        head.masks[0].copy_(mask)
    torch.testing.assert_close(head(z).logits.double(), expected, rtol=1e-4, atol=1e-5)


def test_each_group_of_sites_has_its_own_mask():
    head, z, logits = headed(TWO_HEADS.build().eval(), TWO_HEADS.inputs(4))
    assert len(head.masks) == 2
    cut = [torch.zeros_like(mask) for mask in head.masks]
    with torch.no_grad():
        first = head.logits(z, [cut[0], head.masks[1]])
        second = head.logits(z, [head.masks[0], cut[1]])
        none = head.logits(z, cut)
    torch.testing.assert_close(first + second - none, logits, rtol=1e-4, atol=1e-4)
    assert (first - second).abs().max() > 1e-3


@given(seed=SEEDS, tau=st.floats(0, 0.99))
def test_the_mask_in_force_is_what_is_above_tau(seed, tau):
    head, z, _ = plain(tau=tau)
    mask = random_mask(8, seed)
    mask[0, 0] = tau  # at the threshold is cut
    with torch.no_grad():
        head.masks[0].copy_(mask)
        binary = (mask > tau).float()
        assert torch.equal(head.masks_in_force()[0], binary)
        assert head.masks_in_force()[0][0, 0] == 0
        assert torch.equal(head.eval()(z).logits, head.logits(z, [binary]))
        assert torch.equal(head.train()(z).logits, head.logits(z, [mask]))
        head.threshold = False
        assert torch.equal(head.eval()(z).logits, head.logits(z, [mask]))
        labels = head.logits(z, [binary]).argmax(1)
        assert torch.equal(head.still_right(z, labels, trained=True), head.logits(z, [mask]).argmax(1) == labels)
        head.threshold = True
        assert head.still_right(z, labels).all()


# The loss.


@given(seed=SEEDS, chosen=st.lists(st.booleans(), min_size=6, max_size=6))
def test_the_loss_is_minus_the_summed_entropy_of_the_chosen(seed, chosen):
    head, z, _ = plain()
    labels = torch.randint(4, (6,), generator=torch.Generator().manual_seed(seed))
    chosen = torch.tensor(chosen)
    loss = head(z, labels, chosen).loss
    log = functional.log_softmax(head(z).logits.double(), dim=1)
    torch.testing.assert_close(loss.double(), log[chosen, labels[chosen]].sum(), rtol=1e-5, atol=1e-5)
    loss.backward()
    assert (head.masks[0].grad.abs().max() > 0) == bool(chosen.any())  # zeros, not None, where nothing is chosen
    torch.testing.assert_close(head(z, labels).loss.double(), log[torch.arange(6), labels].sum(), rtol=1e-5, atol=1e-5)
    evaluated = head.eval()(z, labels)
    torch.testing.assert_close(evaluated.loss, functional.cross_entropy(evaluated.logits, labels))
    assert "loss" not in head(z)


# What is trained.


def test_only_masks_of_ones_are_trained():
    head, z, _ = headed(TWO_HEADS.build().eval(), TWO_HEADS.inputs(4), after=[torch.eye(32)[:, :2]] * 2)
    trained = {name for name, parameter in head.named_parameters() if parameter.requires_grad}
    assert trained == {"masks.0", "masks.1"}
    assert all(torch.equal(mask, torch.ones_like(mask)) for mask in head.masks)
    head(z, torch.zeros(4, dtype=torch.long)).loss.backward()
    assert {name for name, parameter in head.named_parameters() if parameter.grad is not None} == trained


def test_the_heads_stay_in_eval_mode_and_are_copies():
    model = tiny()
    head, *_ = headed(model, {"pixel_values": images(2)})
    assert head.train().training
    assert not any(module.training for module in head.heads.modules())
    mine = {parameter.data_ptr() for parameter in head.parameters()}
    assert mine.isdisjoint(parameter.data_ptr() for parameter in model.parameters())


def test_the_mask_is_float32_under_autocast():
    """What the mask makes of the features is not rounded on its way to the head."""
    head, z, _ = plain()
    mask = random_mask(8, 0)
    with torch.no_grad():
        head.masks[0].copy_(mask)
    [[linear]] = head.heads
    inner, seen = linear.forward, []
    linear.forward = lambda x: seen.append(x) or inner(x)
    with torch.autocast("cpu", torch.bfloat16):
        output = head(z.bfloat16(), torch.zeros(6, dtype=torch.long))
    output.loss.backward()
    u_m = head.bases[0] * mask
    torch.testing.assert_close(seen[0], z.bfloat16().float() @ u_m @ u_m.T, rtol=1e-6, atol=1e-6)
    assert output.logits.dtype == head.masks[0].dtype == head.masks[0].grad.dtype == torch.float32
