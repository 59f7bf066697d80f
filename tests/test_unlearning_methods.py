"""The law behind each unlearning method, on a problem of four shades."""

import math
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from transformers import EfficientNetImageProcessor, TrainerCallback, ViTImageProcessor

from hf_esc.data.labelled_images import labelled_images
from hf_esc.errors import (
    DivergenceError,
    ForgetSetError,
    IncompleteErasureWarning,
    LabelError,
    ModelError,
    OptionError,
)
from hf_esc.features.sites import find_sites
from hf_esc.features.stream import stream_features
from hf_esc.loading import random_network
from hf_esc.unlearning import fisher_forgetting
from hf_esc.unlearning.boundary_shrink import pixel_range, pixels_of
from hf_esc.unlearning.fisher import fisher_information
from hf_esc.unlearning.losses import draw_labels, forbidden, kl_divergence

from .tiny import tiny
from .unlearning import C, forget_set, learnt, made, pictures, retain_set, rows, same, trained, weights


def loss(trainer, forget=None, retain=None) -> torch.Tensor:
    return trainer.unlearning_loss(trainer.model.eval(), forget, retain)


def student_logits(trainer, batch) -> torch.Tensor:
    return trainer.model.eval()(**batch["inputs"]).logits


def moved(trainer):
    """The same trainer with a student that is no longer its teacher."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return trainer


# Terms of losses


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 7), st.sampled_from([1.0, 2.0, 4.0]))
def test_the_divergence_is_that_of_its_definition(seed, n, c, temperature):
    teacher, student = torch.randn(2, n, c, generator=torch.Generator().manual_seed(seed))
    p, q = ((logits.double() / temperature).softmax(dim=1) for logits in (teacher, student))
    by_hand = temperature**2 * (p * (p / q).log()).sum(dim=1).mean()
    assert kl_divergence(teacher, student, temperature).item() == pytest.approx(by_hand.item(), rel=1e-4, abs=1e-5)
    assert kl_divergence(teacher, teacher, temperature).item() == pytest.approx(0, abs=1e-6)


def test_a_class_that_the_teacher_rules_out_has_no_part_in_value_or_gradient():
    student = torch.randn(3, C, requires_grad=True)
    teacher = torch.randn(3, C)
    teacher[:, 2] = -math.inf
    value = kl_divergence(teacher, student)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()


@given(st.integers(0, 1000), st.booleans())
def test_a_drawn_label_is_never_a_forbidden_one_and_every_other_one_is_drawn(seed, every):
    labels = torch.arange(3).repeat(200)
    mask = forbidden(labels, 5, torch.arange(3) if every else None)
    drawn = draw_labels(mask, torch.Generator().manual_seed(seed))
    assert not mask.gather(1, drawn[:, None]).any()
    for label in range(3):
        allowed = {3, 4} if every else set(range(5)) - {label}
        assert set(drawn[labels == label].tolist()) == allowed


def test_where_all_classes_are_forgotten_no_label_is_left_to_draw():
    with pytest.raises(LabelError, match="mask='own'"):
        forbidden(torch.tensor([0, 1]), 2, torch.tensor([0, 1]))


# DELETE


def test_delete_is_minus_log_one_minus_p_plus_the_divergence_of_the_rest():
    trainer = moved(made("delete"))
    batch = rows(trainer)
    y, teacher = batch["labels"], trainer.teacher(**batch["inputs"]).logits.double()
    p = student_logits(trainer, batch).double().softmax(dim=1)
    own = functional.one_hot(y, C).bool()
    q = teacher.masked_fill(own, -math.inf).softmax(dim=1)
    rest = p.masked_fill(own, 0) / (1 - p[own])[:, None]
    by_hand = -(1 - p[own]).log() + torch.where(own, 0, q * (q / rest).log()).sum(dim=1)
    assert loss(trainer, batch).item() == pytest.approx(by_hand.mean().item(), rel=1e-4)


def test_the_gradient_of_delete_with_respect_to_the_logits_is_p_minus_q():
    trainer = moved(made("delete"))
    batch = rows(trainer)
    logits = student_logits(trainer, batch).detach().requires_grad_(True)
    trainer.logits = lambda model, images: logits
    loss(trainer, batch).backward()
    teacher = trainer.teacher(**batch["inputs"]).logits.scatter(1, batch["labels"][:, None], -math.inf)
    torch.testing.assert_close(logits.grad, (logits.softmax(1) - teacher.softmax(1)) / len(logits), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("mask", "left"), [("own", {1: {0, 2, 3}, 2: {0, 1, 3}}), ("all", {1: {0, 3}, 2: {0, 3}})])
def test_the_mask_is_the_own_label_or_all_that_are_forgotten(mask, left):
    trainer = made("delete", forget=[pictures(1, 8), pictures(2, 8)], retain=[pictures(0, 4)], mask=mask)
    batch = rows(trainer)
    out = trainer.forbidden(batch["labels"])
    for label, there in left.items():
        for row in (~out)[batch["labels"] == label]:
            assert set(row.nonzero().flatten().tolist()) == there


# NegGrad


def test_neg_grad_is_ascent_and_stops_when_no_image_is_right():
    trainer = moved(made("neg-grad"))
    batch = rows(trainer)
    by_hand = functional.cross_entropy(student_logits(trainer, batch), batch["labels"])
    assert loss(trainer, batch).item() == pytest.approx(-by_hand.item(), rel=1e-5)
    trainer = trained("neg-grad", learning_rate=0.05, num_train_epochs=200)
    assert trainer.model.config.erasures[-1]["unchanged"] == 0
    assert trainer.state.epoch < 200


def test_neg_grad_plus_weighs_both_sides():
    trainer = moved(made("neg-grad-plus", alpha=0.7))
    forget, retain = rows(trainer, 0, 1, 2), rows(trainer, 0, 20, 40, side="retain")
    gone, kept = (functional.cross_entropy(student_logits(trainer, x), x["labels"]) for x in (forget, retain))
    assert loss(trainer, forget, retain).item() == pytest.approx((0.7 * kept - 0.3 * gone).item(), rel=1e-4)


# Random labels, SalUn


@pytest.mark.parametrize("redraw", [False, True])
def test_random_labels_are_never_the_own_one(redraw):
    trainer = made("random-label", redraw=redraw)
    batch = rows(trainer)
    seen = torch.stack([trainer.targets(batch) for _ in range(50)])
    assert not (seen == batch["labels"]).any()
    assert bool((seen == seen[0]).all()) is not redraw
    by_hand = functional.cross_entropy(student_logits(trainer, batch), trainer.targets(batch))
    if not redraw:
        assert loss(trainer, batch).item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_random_labels_are_those_of_the_seed():
    one, other, third = (made("random-label", seed=seed).drawn for seed in (0, 0, 1))
    assert torch.equal(one, other)
    assert not torch.equal(one, third)


def test_salun_leaves_all_other_weights_as_they_were_to_the_bit_under_decay_and_momentum():
    trainer = trained("salun", learning_rate=0.05, num_train_epochs=3, weight_decay=0.1)
    before, after = weights(learnt()), weights(trainer.model)
    kept = total = 0
    for name, mask in trainer.mask.items():
        assert torch.equal(after[name][~mask], before[name][~mask])
        kept += int(mask.sum())
        total += mask.numel()
        if mask.any():
            assert not torch.equal(after[name][mask], before[name][mask])
    assert kept == round(total / 2)


def test_salun_trains_the_weights_with_the_largest_gradient_of_the_forget_set():
    trainer = made("salun", saliency=0.3)
    model, batch = learnt(), rows(trainer)
    value = functional.cross_entropy(model(**batch["inputs"]).logits, batch["labels"], reduction="sum")
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(value, parameters)
    chosen = torch.cat([trainer.mask[name].flatten() for name in names])
    size = torch.cat([gradient.abs().flatten() for gradient in gradients])
    assert size[chosen].min() >= size[~chosen].max() * (1 - 1e-3)
    assert int(chosen.sum()) == round(0.3 * len(chosen))


def test_salun_learns_random_labels_and_the_retain_images_own():
    trainer = moved(made("salun"))
    forget, retain = rows(trainer, 0, 1, 2), rows(trainer, 0, 20, side="retain")
    logits = torch.cat([student_logits(trainer, forget), student_logits(trainer, retain)])
    targets = torch.cat([trainer.drawn[:3], retain["labels"]])
    by_hand = functional.cross_entropy(logits, targets)
    assert loss(trainer, forget, retain).item() == pytest.approx(by_hand.item(), rel=1e-5)


# Boundary Shrink

NORMALISED = ViTImageProcessor(
    size={"height": 16, "width": 16}, image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.25, 0.2]
)


@pytest.mark.parametrize(
    ("processor", "low", "high"),
    [
        (NORMALISED, [-1.0, -1.6, -1.5], [1.0, 2.4, 3.5]),
        (ViTImageProcessor(do_normalize=False), [0.0] * 3, [1.0] * 3),
        (ViTImageProcessor(do_rescale=False, do_normalize=False), [0.0] * 3, [255.0] * 3),
        # It moves what it has rescaled, and normalises twice.
        (
            EfficientNetImageProcessor(
                rescale_offset=True, rescale_factor=1 / 127.5, image_mean=[0.0] * 3, image_std=[0.5] * 3
            ),
            [-4.0] * 3,
            [4.0] * 3,
        ),
    ],
    ids=["normalised", "rescaled", "raw", "EfficientNet"],
)
def test_the_range_of_pixels_is_that_of_the_processor(processor, low, high):
    model = tiny("vit")
    found = pixel_range(processor, model)
    for bound, expected in zip(found, (low, high), strict=True):
        torch.testing.assert_close(bound.flatten(), torch.tensor(expected), atol=1e-4, rtol=0)
    # And so of a real picture: nothing in it is beyond, and it comes near both ends.
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    pixels = processor(images=noise, return_tensors="pt")["pixel_values"][0]
    slack = 1e-3 * (found[1] - found[0])
    assert (pixels >= found[0] - slack).all()
    assert (pixels <= found[1] + slack).all()


def test_a_processor_that_hides_the_range_of_pixels_is_refused():
    class Blind(ViTImageProcessor):
        def __call__(self, images, **kwargs):
            return {"pixel_values": torch.zeros(len(images), *self.left)}

    assert pixels_of(SimpleNamespace(main_input_name="inputs"), {"pixel_values": torch.zeros(1, 3, 2, 2)})
    with pytest.raises(ModelError, match="holds a, b, and it is unclear which are images"):
        pixels_of(SimpleNamespace(main_input_name="x"), {"a": torch.zeros(1, 3, 2, 2), "b": torch.zeros(1, 3, 2, 2)})
    blind = Blind()
    for blind.left, message in (((3, 8, 8), "the same after Blind"), ((4, 48), "makes \\(4, 48\\) of an image")):
        with pytest.raises(ModelError, match=message):
            pixel_range(blind, tiny("vit"))


def test_the_attack_of_boundary_shrink_is_one_step_up_the_loss_in_pixels():
    """In pixels from 0 to 1 each moves by epsilon, unless it would leave their range."""
    trainer = made("boundary-shrink", processing_class=NORMALISED, epsilon=0.2)
    mean, std = (torch.tensor(value).reshape(3, 1, 1) for value in (NORMALISED.image_mean, NORMALISED.image_std))
    pixels = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.ones(6, dtype=torch.long)
    seen = []
    real, hook = trainer.teacher, None
    hook = real.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    trainer._attacked({"pixel_values": (pixels - mean) / std}, labels, *pixel_range(NORMALISED, real))
    hook.remove()
    x = pixels.clone().requires_grad_(True)
    functional.cross_entropy(real((x - mean) / std).logits, labels, reduction="sum").backward()
    by_hand = (pixels + 0.2 * x.grad.sign()).clamp(0, 1)
    torch.testing.assert_close(seen[1] * std + mean, by_hand, atol=1e-5, rtol=0)


def test_boundary_shrink_never_teaches_the_own_label_even_where_the_attack_fails():
    trainer = moved(made("boundary-shrink", processing_class=NORMALISED, epsilon=1e-6))
    assert trainer.failed_attacks > 0.9
    assert not (trainer.nearest == trainer.forget.labels).any()
    batch = rows(trainer)
    second = trainer.teacher(**batch["inputs"]).logits.scatter(1, batch["labels"][:, None], -math.inf).argmax(1)
    assert torch.equal(trainer.nearest, second)  # of an attack that moves nothing
    by_hand = functional.cross_entropy(student_logits(trainer, batch), second)
    assert loss(trainer, batch).item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert trainer.settings()["failed_attacks"] == trainer.failed_attacks


def test_boundary_shrink_asks_for_the_processor_it_needs():
    with pytest.raises(ModelError, match="processing_class"):
        made("boundary-shrink")


# LAU


def features(model, batch):
    with torch.no_grad():
        [seen] = list(stream_features(model.eval(), find_sites(model, batch), [batch]))
    return seen.features[0]


def test_lau_gives_the_model_back_as_trainable_as_it_came():
    trainer = made("lau")
    for _ in range(2):  # a second training is of the head alone, too
        trainer.train()
        assert all(parameter.requires_grad for parameter in trainer.model.parameters())
        before, after = trainer.teacher.state_dict(), trainer.model.state_dict()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == {"classifier.weight", "classifier.bias"}


def test_lau_leaves_features_and_all_layers_before_the_head_as_they_were_to_the_bit():
    trainer = trained("lau", learning_rate=0.1, num_train_epochs=3, weight_decay=0.1)
    [head] = [path for group in trainer.sites for path in group.modules]
    before, after = learnt().state_dict(), trainer.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(head + ".") for name in changed)
    batch = {"pixel_values": pictures(1, 5, seed=4)["pixel_values"]}
    assert torch.equal(features(trainer.model, batch), features(learnt(), batch))


def test_lau_trains_the_head_on_what_the_original_says_of_attacked_features():
    trainer = moved(made("lau", alpha=0.3, temperature=2.0))
    batch = rows(trainer, 0, 1, 2)
    z = [part[:3] for part in trainer.features]
    logits = trainer.head(trainer.model, z)
    with torch.no_grad():
        torch.testing.assert_close(trainer.head(trainer.teacher, z), trainer.teacher(**batch["inputs"]).logits)
    hard = functional.cross_entropy(logits, trainer.nearest[:3])
    soft = kl_divergence(trainer.attacked_logits[:3], logits, 2.0)
    assert loss(trainer, batch).item() == pytest.approx((0.7 * hard + 0.3 * soft).item(), rel=1e-5)
    assert not (trainer.nearest == trainer.forget.labels).any()


def test_the_attack_of_lau_stops_as_soon_as_the_head_says_something_else():
    trainer = made("lau", attack_step=0.05, attack_steps=500)
    batch = rows(trainer)
    z = trainer.features[0].clone()
    for row, label in enumerate(batch["labels"].tolist()):
        for _ in range(500):
            one = z[row : row + 1].clone().requires_grad_(True)
            logits = trainer.head(trainer.teacher, [one])
            if logits.argmax() != label:
                break
            functional.cross_entropy(logits, torch.tensor([label])).backward()
            z[row] += 0.05 * one.grad[0].sign()
    with torch.no_grad():
        torch.testing.assert_close(trainer.attacked_logits, trainer.head(trainer.teacher, [z]), atol=1e-4, rtol=1e-4)
    assert (trainer.attacked_logits.argmax(dim=1) != batch["labels"]).all()
    assert trainer.settings()["failed_attacks"] == 0


def test_attacks_of_lau_that_fail_are_in_the_ledger():
    assert made("lau", attack_step=1e-9, attack_steps=1).settings()["failed_attacks"] == 1


# Bad teacher, SCRUB


def test_the_bad_teacher_is_random_on_forget_images_and_the_original_on_retain_images():
    trainer = moved(made("bad-teacher", retain_share=0.5))
    assert len(trainer.retain) == 24
    forget, retain = rows(trainer, 0, 1, 2), rows(trainer, 0, 10, side="retain")
    with torch.no_grad():
        bad = random_network(learnt(), trainer.args.seed + 1)(**forget["inputs"]).logits
        good = learnt()(**retain["inputs"]).logits
    by_hand = 3 * kl_divergence(bad, student_logits(trainer, forget))
    by_hand = (by_hand + 2 * kl_divergence(good, student_logits(trainer, retain))) / 5
    assert loss(trainer, forget, retain).item() == pytest.approx(by_hand.item(), rel=1e-4)
    alone = kl_divergence(bad, student_logits(trainer, forget))
    assert loss(trainer, forget, None).item() == pytest.approx(alone.item(), rel=1e-4)


class Sides(TrainerCallback):
    """What each step of a run held."""

    def __init__(self):
        self.seen = []

    def watch(self, trainer):
        real = trainer.unlearning_loss

        def watched(model, forget, retain):
            self.seen.append((trainer.state.epoch, forget is not None, retain is not None))
            return real(model, forget, retain)

        trainer.unlearning_loss = watched
        return trainer


def test_scrub_forgets_in_the_first_epochs_and_retains_in_all():
    sides = Sides()
    trainer = sides.watch(made("scrub", retain_batch_size=16))
    with pytest.warns(IncompleteErasureWarning):
        trainer.train()
    # 24 forget images in batches of 8, 48 retain images in batches of 16
    up, down = [(True, False)] * 3, [(False, True)] * 3
    assert [seen[1:] for seen in sides.seen] == up + down + up + down + down
    assert trainer.state.global_step == 15


def test_scrub_goes_up_on_forget_images_and_down_on_retain_images():
    trainer = moved(made("scrub", gamma=0.6, alpha=0.2, temperature=2.0))
    forget, retain = rows(trainer, 0, 1, 2), rows(trainer, 0, 20, side="retain")
    with torch.no_grad():
        teacher = [learnt()(**batch["inputs"]).logits for batch in (forget, retain)]
    up = kl_divergence(teacher[0], student_logits(trainer, forget), 2.0)
    assert loss(trainer, forget, None).item() == pytest.approx(-up.item(), rel=1e-4)
    logits = student_logits(trainer, retain)
    down = 0.6 * functional.cross_entropy(logits, retain["labels"]) + 0.2 * kl_divergence(teacher[1], logits, 2.0)
    assert loss(trainer, None, retain).item() == pytest.approx(down.item(), rel=1e-4)


# Finetune, l1-sparse, Retrain


def test_finetune_is_the_cross_entropy_of_retain_images_and_never_sees_the_others():
    sides = Sides()
    trainer = sides.watch(made("finetune", num_train_epochs=1))
    retain = rows(trainer, 0, 20, side="retain")
    by_hand = functional.cross_entropy(student_logits(trainer, retain), retain["labels"])
    assert loss(trainer, None, retain).item() == pytest.approx(by_hand.item(), rel=1e-5)
    with pytest.warns(IncompleteErasureWarning):
        trainer.train()
    assert {seen[1:] for seen in sides.seen} == {(False, True)}


def test_the_penalty_of_l1_sparse_falls_to_zero_in_equal_steps():
    trainer = made("l1-sparse", gamma=0.01)
    retain = rows(trainer, 0, 20, side="retain")
    plain = functional.cross_entropy(student_logits(trainer, retain), retain["labels"])
    norm = sum(weight.abs().sum() for weight in trainer.model.parameters())
    trainer.state.max_steps = 10
    for step in range(11):
        trainer.state.global_step = step
        by_hand = plain + 0.01 * (1 - step / 10) * norm
        assert loss(trainer, None, retain).item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_retrain_starts_from_random_weights_of_its_seed_or_from_the_given_ones(tmp_path):
    one, other, third = (made("retrain", seed=seed) for seed in (0, 0, 1))
    for trainer in (one, other, third):
        trainer.start()
    assert same(weights(one.model), weights(other.model))
    assert same(weights(one.model), weights(random_network(learnt(), 0)))
    assert not same(weights(one.model), weights(third.model))
    start = random_network(learnt(), 5)
    start.save_pretrained(tmp_path)
    given = made("retrain", start=str(tmp_path))
    given.start()
    assert same(weights(given.model), weights(start))
    assert given.settings()["start"] == "pretrained"
    assert str(tmp_path) not in str(given.settings())


def test_retrain_never_knew_the_class():
    trainer = trained("retrain", learning_rate=0.05, num_train_epochs=8)
    with torch.no_grad():
        retain = rows(trainer, side="retain")
        right = student_logits(trainer, retain).argmax(1) == retain["labels"]
        gone = student_logits(trainer, rows(trainer)).argmax(1) == 1
    assert right.double().mean() > 0.6
    assert not gone.any()


# Fisher


def test_the_fisher_information_is_the_enumerated_sum_of_squares_of_single_gradients():
    model = learnt()
    images, _ = labelled_images(model, retain_set(3))
    information = fisher_information(model, images, batch_size=4)
    names, parameters = zip(*model.named_parameters(), strict=True)
    by_hand = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
    for batch in retain_set(3):
        for x in batch["pixel_values"]:
            for y in range(C):
                logits = model(pixel_values=x[None]).logits
                p = logits.softmax(dim=1)[0, y].item()
                gradients = torch.autograd.grad(functional.cross_entropy(logits, torch.tensor([y])), parameters)
                for total, gradient in zip(by_hand, gradients, strict=True):
                    total += p * gradient.double() ** 2 / 9
    for name, total in zip(names, by_hand, strict=True):
        torch.testing.assert_close(information[name].double(), total, rtol=1e-3, atol=1e-9)
    together = fisher_information(model, images, batch_size=9)
    for name in names:
        torch.testing.assert_close(together[name], information[name], rtol=1e-4, atol=1e-9)


def test_a_model_that_looks_at_values_gets_the_same_information_one_image_at_a_time(monkeypatch):
    model = learnt()
    images, _ = labelled_images(model, retain_set(2))
    expected = fisher_information(model, images)
    real = type(model).forward

    def looking(self, pixel_values, **kwargs):
        assert pixel_values.abs().max().item() < 100
        return real(self, pixel_values, **kwargs)

    monkeypatch.setattr(type(model), "forward", looking)
    found = fisher_information(model, images)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-9)


@pytest.mark.slow
def test_fisher_noise_has_the_size_of_its_formula():
    """Over many seeds the mean square of what a weight moves is alpha / max(F, floor)."""
    model = learnt()
    images, _ = labelled_images(model, retain_set(4))
    information = fisher_information(model, images)
    before, runs = weights(model), 60
    squares = {name: torch.zeros_like(value) for name, value in before.items()}
    for seed in range(runs):
        with pytest.warns(IncompleteErasureWarning):
            after = fisher_forgetting(model, forget_set(4), retain_set(4), alpha=1e-9, floor=1e-4, seed=seed)
        for name, value in after.named_parameters():
            squares[name] += (value.detach() - before[name]) ** 2 / runs
    ratio = torch.cat([(squares[name] / (1e-9 / information[name].clamp_min(1e-4))).flatten() for name in before])
    assert ratio.mean().item() == pytest.approx(1, abs=0.05)


def test_fisher_zeroes_the_head_row_only_when_asked_and_keeps_the_given_model():
    model = learnt()
    before = weights(model)
    zeroed = fisher_forgetting(model, forget_set(4), retain_set(4), alpha=1e-12, zero_head_rows=True)
    assert same(weights(model), before)
    [group] = find_sites(model, {"pixel_values": pictures(0, 2)["pixel_values"]})
    head = zeroed.get_submodule(group.modules[0])
    assert (head.weight[1] == 0).all()
    assert (head.weight[0] != 0).any()
    record = zeroed.config.erasures[-1]
    assert record["method"] == "fisher"
    assert record["label_ids"] == [1]
    assert type(zeroed) is type(model)


def test_bad_values_of_fisher_are_named():
    for settings in ({"alpha": 0}, {"floor": -1}, {"batch_size": 0}, {"num_images": 0}, {"scenario": "both"}):
        with pytest.raises(OptionError, match=next(iter(settings))):
            fisher_forgetting(learnt(), forget_set(2), retain_set(2), **settings)
    for value in (math.nan, math.inf):
        with pytest.raises(OptionError, match="alpha"):
            fisher_forgetting(learnt(), forget_set(2), retain_set(2), alpha=value)
    with pytest.raises(DivergenceError, match="smaller `alpha`"):
        fisher_forgetting(learnt(), forget_set(2), retain_set(2), alpha=1e70)
    wrong = [pictures(0, 4) | {"labels": torch.full((4,), 1)}]
    with pytest.raises(ForgetSetError, match="nothing to do"):
        fisher_forgetting(learnt(), wrong, [pictures(2, 2)])
    with pytest.raises(OptionError, match="zero_head_rows"):
        fisher_forgetting(learnt(), forget_set(2), retain_set(2), scenario="images", zero_head_rows=True)
    broken = [{"pixel_values": torch.full((2, 3, 16, 16), math.nan), "labels": torch.tensor([0, 2])}]
    with pytest.raises(DivergenceError):
        fisher_forgetting(learnt(), forget_set(2), broken)


# Arguments that a method refuses


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("neg-grad-plus", {"alpha": 1.0}),
        ("l1-sparse", {"gamma": -1.0}),
        ("salun", {"saliency": 0.0}),
        ("boundary-shrink", {"epsilon": 1.5}),
        ("lau", {"alpha": 1.1}),
        ("lau", {"attack_steps": 0}),
        ("bad-teacher", {"retain_share": 0.0}),
        ("scrub", {"forget_epochs": 0}),
        *(
            (method, {"temperature": value})
            for method in ("delete", "lau", "scrub", "bad-teacher")
            for value in (0, -1)
        ),
        ("scrub", {"gamma": -1.0}),
    ],
)
def test_a_value_out_of_its_range_is_named(method, settings):
    with pytest.raises(OptionError, match=next(iter(settings))):
        made(method, **settings)
