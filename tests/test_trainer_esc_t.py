"""ESC-T as a method: the class goes and the rest stays, and each step is the formula's."""

import copy

import pytest
import torch
from transformers import TrainerCallback

from hf_esc import ESCTTrainer
from hf_esc.data import image_batches
from hf_esc.errors import CheckpointError, IncompleteErasureWarning, MaskError
from hf_esc.loading import load_processor
from hf_esc.modeling.projection import product

from .esc_t import (
    BAG,
    BOOT,
    OF_A_RUN,
    TROUSER,
    Watch,
    arguments,
    by_hand,
    factor,
    made,
    record,
    right,
    rows,
    soft,
    trained,
)


@pytest.fixture(scope="module")
def trousers(resnet, fashion):
    """The features of all training images of one class."""
    return made(resnet, fashion.select(fashion.train, [TROUSER])).train_dataset


@pytest.fixture(scope="module")
def few(trousers):
    """The features of 200 of them, which span all 128 directions, as a batch."""
    return rows(trousers, 200)


@pytest.fixture(scope="module")
def run(resnet, trousers):
    before = copy.deepcopy(resnet)
    return trained(resnet, trousers), before


# It erases.


def test_the_class_goes_and_the_rest_stays(resnet, run, trousers, fashion):
    trainer, _ = run
    assert trainer.model.eval().still_right(**rows(trousers)).sum() == 0
    assert right(trainer.erased_model, fashion.select(fashion.train, [TROUSER])) == 0
    test = fashion.select(fashion.test, [TROUSER])
    assert right(resnet, test) > 95
    assert right(trainer.erased_model, test) < 5
    retain = fashion.select(fashion.test, [TROUSER], keep=False).select(range(600))
    assert right(trainer.erased_model, retain) > right(resnet, retain) - 2


def test_several_classes_go_at_once(resnet, fashion):
    labels = [TROUSER, BAG, BOOT]
    forget = fashion.select(fashion.train, labels).shuffle(0).select(range(600))
    trainer = trained(resnet, forget)
    assert right(trainer.erased_model, forget) == 0
    assert record(trainer)["label_ids"] == labels
    assert record(trainer)["unchanged_by_label"] == [0] * len(labels)
    retain = fashion.select(fashion.test, labels, keep=False).select(range(400))
    assert right(trainer.erased_model, retain) > right(resnet, retain) - 4


def test_the_given_model_is_left_bit_for_bit_as_it_was(resnet, run):
    trainer, before = run
    for name, value in before.state_dict().items():
        assert torch.equal(resnet.state_dict()[name], value), name
    for (name, module), (_, old) in zip(resnet.named_modules(), before.named_modules(), strict=True):
        assert module.training == old.training, name
        assert len(module._forward_pre_hooks) == len(old._forward_pre_hooks), name
    for (name, value), (_, old) in zip(resnet.named_parameters(), before.named_parameters(), strict=True):
        assert value.requires_grad == old.requires_grad, name
        assert value.grad is None, name
    assert resnet.config.to_dict() == before.config.to_dict()
    inside = trainer.erased_model.model.state_dict()
    assert all(torch.equal(inside[name], value) for name, value in before.state_dict().items())


def test_it_says_what_it_did(run):
    trainer, _ = run
    steps = trainer.state.global_step
    expected = {"method": "esc-t", "tau": 0.7, "tolerance": 0, "stopped": "forgotten", "labels": ["Trouser"]}
    expected |= {"loss_normalization": "correct", "clip": True, "threshold": True, "learning_rate": None, "seed": 42}
    expected |= {"batch_size": 64, "max_steps": 50 * 11, "step_size": 10 / 550, "steps": steps, "unchanged": 0}
    expected |= {"num_images": 700, "unchanged_of": 700, "cut": [1 - factor(trainer).mask.float().mean().item()]}
    assert record(trainer) | expected == record(trainer) | {"cut": pytest.approx(expected["cut"])}
    assert 0 < steps < 550
    assert record(trainer)["right_before"] > 0.95
    assert not trainer.erased_model.training
    assert trainer.erased_model.image_processor is not None


# What is in front of the head.


@torch.no_grad()
def test_the_projection_is_u_r_u_r_transposed(resnet, run, few, fashion):
    trainer, _ = run
    masked = factor(trainer)
    assert torch.equal(masked.mask.bool(), soft(trainer) > 0.7)
    u_r = trainer.model.bases[0].double() * masked.mask
    projection = product([masked], 128)
    torch.testing.assert_close(projection, u_r @ u_r.T, rtol=0, atol=1e-6)
    pictures = fashion.select(fashion.train, [TROUSER]).select(range(50))
    [batch] = image_batches(pictures, load_processor(resnet), image_column="image", batch_size=50)
    expected = few["features"][:50].double() @ u_r @ u_r.T
    torch.testing.assert_close(trainer.erased_model.features(**batch).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n", [1, 5, 127, 700])
def test_u_is_complete_however_few_the_images(resnet, trousers, n):
    batch = rows(trousers, n)
    trainer = trained(resnet, [batch])
    u, z = trainer.model.bases[0].double(), batch["features"].double()
    torch.testing.assert_close(u.T @ u, torch.eye(128).double(), rtol=0, atol=1e-6)
    spectrum = torch.linalg.svdvals(z) ** 2
    expected = torch.cat([spectrum, torch.zeros(128)])[:128].diag()
    torch.testing.assert_close(u.T @ (z.T @ z) @ u, expected, rtol=1e-5, atol=1e-5 * spectrum[0].item())
    assert record(trainer)["unchanged"] == 0
    assert torch.equal(factor(trainer).basis, trainer.model.bases[0])


# A step.


@pytest.mark.parametrize(
    "settings",
    [{}, {"tau": 0.05}, {"tau": 0.95}, {"learning_rate": 2.0}, {"clip": False}, {"learning_rate": 2.0, "clip": False}],
    ids=str,
)
def test_every_step_is_the_formulas(resnet, few, settings):
    watch = Watch()
    trainer = trained(
        resnet, [few], callbacks=[watch], per_device_train_batch_size=200, num_train_epochs=60, **settings
    )
    names = {"learning_rate": "lr"}
    by_name = {names.get(name, name): value for name, value in settings.items()}
    expected = by_hand(resnet.classifier[1], trainer.model.bases[0], few, steps=60, **by_name)
    assert len(watch.masks) == len(expected) == record(trainer)["steps"] > 1
    for mask, by_formula in zip(watch.masks, expected, strict=True):
        torch.testing.assert_close(mask.double(), by_formula, rtol=0, atol=1e-4)
    assert (watch.masks[-1].max() > 1) == (not trainer.args.clip)


@pytest.mark.parametrize(("epochs", "step"), [(20, 0.2), (50, 0.1), (200, 0.025)])
def test_the_default_step_is_ten_in_the_steps_of_the_run_and_0_2_at_most(resnet, few, epochs, step):
    watch = Watch()
    trained(resnet, [few], callbacks=[watch], num_train_epochs=epochs, per_device_train_batch_size=100, clip=False)
    masks = torch.stack([torch.ones(128, 128), *watch.masks])
    largest = masks.diff(dim=0).abs().amax(dim=(1, 2))
    moved = largest[largest > 0]  # where a batch has nothing right in it, nothing moves
    assert len(moved) > 1
    torch.testing.assert_close(moved, torch.full_like(moved, step), rtol=1e-4, atol=0)


@pytest.mark.parametrize("scale", [1 / 1024, 1024, 1000])
def test_the_scale_of_the_features_does_not_matter(resnet, few, scale):
    """Bit for bit, where it is a power of two."""
    expected = trained(resnet, [few])
    scaled = copy.deepcopy(resnet)
    with torch.no_grad():
        scaled.classifier[1].weight /= scale
    trainer = trained(scaled, [{"features": few["features"] * scale, "labels": few["labels"]}])
    torch.testing.assert_close(soft(trainer), soft(expected), rtol=0, atol=0 if scale != 1000 else 1e-4)
    assert torch.equal(factor(trainer).mask, factor(expected).mask)


def test_the_loss_is_averaged_over_the_images_that_are_still_right(resnet, few, fashion):
    """Half of the images are wrong from the start; they count for nothing but the number of images."""
    bags = made(resnet, fashion.select(fashion.train, [BAG]).select(range(200))).train_dataset
    batch = {"features": torch.cat([few["features"], rows(bags)["features"]]), "labels": few["labels"].repeat(2)}
    steps, masks = {}, {}
    for kind in ("correct", "batch"):
        watch = Watch()
        settings = {"loss_normalization": kind, "clip": False, "per_device_train_batch_size": 400}
        trainer = trained(resnet, [batch], callbacks=[watch], learning_rate=2.0, num_train_epochs=200, **settings)
        steps[kind] = 1 - watch.masks[0]
        masks[kind] = soft(trained(resnet, [batch], **settings))
    share = record(trainer)["right_before"]
    assert 0.45 < share <= 0.5
    torch.testing.assert_close(steps["batch"], share * steps["correct"], rtol=0, atol=1e-6)
    # A step that is measured by the largest entry has no such number.
    torch.testing.assert_close(masks["batch"], masks["correct"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"learning_rate": 2.0}], ids=str)
def test_accumulated_batches_are_one_large_batch(resnet, trousers, settings):
    small, large = (
        trained(
            resnet, trousers, per_device_train_batch_size=256 // parts, gradient_accumulation_steps=parts, **settings
        )
        for parts in (8, 1)
    )
    torch.testing.assert_close(soft(small), soft(large), rtol=0, atol=1e-5)
    assert {**record(small), **OF_A_RUN} == {**record(large), **OF_A_RUN}


def test_the_seed_is_the_order_of_the_images(resnet, trousers):
    one, again, other = (trained(resnet, trousers, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(soft(one), soft(again))
    assert not torch.equal(soft(one), soft(other))
    data = trained(resnet, trousers, seed=2, data_seed=1)
    assert torch.equal(soft(one), soft(data))
    assert [record(trainer)["seed"] for trainer in (one, other, data)] == [1, 2, 1]


def test_half_precision_is_not_for_the_mask(resnet, few):
    exact, half = (trained(resnet, [few], bf16=bf16) for bf16 in (False, True))
    assert soft(half).dtype == factor(half).basis.dtype == torch.float32
    assert (soft(half) != soft(half).bfloat16().float()).any()
    torch.testing.assert_close(soft(half), soft(exact), rtol=0, atol=0.05)
    assert record(half)["unchanged"] == 0


# When it stops.


def test_a_tolerance_stops_earlier(resnet, trousers):
    steps = []
    for tolerance in (0, 0.1, 0.4):
        watch = Watch(rows(trousers))
        trainer = trained(resnet, trousers, tolerance=tolerance, callbacks=[watch])
        assert record(trainer)["stopped"] == "forgotten"
        assert record(trainer)["tolerance"] == tolerance
        assert record(trainer)["unchanged"] == watch.right[-1][1] / 700 <= tolerance
        assert all(binarised > tolerance * 700 for _, binarised in watch.right[:-1])
        steps.append(record(trainer)["steps"])
    assert steps[0] > steps[1] > steps[2]


def test_what_only_the_soft_mask_has_forgotten_is_not_forgotten(resnet, few):
    watch = Watch(few)
    trainer = trained(resnet, [few], tau=0.05, callbacks=[watch])
    early = [number for number, (as_trained, binarised) in enumerate(watch.right) if not as_trained and binarised]
    assert len(early) > 10
    assert watch.right[-1][1] == 0
    assert record(trainer)["stopped"] == "forgotten"
    learnt = [not torch.equal(watch.masks[number], watch.masks[number + 1]) for number in early]
    assert sum(learnt) > 10


class Interrupt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == 12


@pytest.mark.parametrize(("stopped", "steps", "callbacks"), [("limit", 12, []), ("interrupted", 50, [Interrupt()])])
def test_a_run_that_ends_too_early_is_not_a_success(resnet, few, stopped, steps, callbacks):
    step = (torch.optim.SGD, {"lr": 0.05})  # six of these cut an entry
    args = arguments(max_steps=steps)
    trainer = ESCTTrainer(resnet, args, [few], callbacks=callbacks, optimizer_cls_and_kwargs=step)
    with pytest.warns(IncompleteErasureWarning, match=r"after 12 steps, \d+ of the 200 forget images .* 0.0% may be"):
        trainer.train()
    assert record(trainer)["stopped"] == stopped
    assert record(trainer)["steps"] == 12
    assert record(trainer)["step_size"] == 0.05
    assert record(trainer)["unchanged"] == int(trainer.model.eval().still_right(**few).sum()) / 200 > 0


def test_a_mask_that_is_not_binarised_can_be_looked_at_and_not_saved(resnet, few, fashion, tmp_path):
    trainer = trained(resnet, [few], threshold=False)
    mask = factor(trainer).mask
    assert torch.equal(mask, soft(trainer))
    assert ((mask > 0) & (mask < 1)).any()
    pictures = fashion.select(fashion.train, [TROUSER]).select(range(200))
    assert right(trainer.erased_model, pictures) == 0
    assert record(trainer)["threshold"] is False
    with pytest.raises(CheckpointError, match="a mask that is not of zeros and ones"):
        trainer.erased_model.save_pretrained(tmp_path / "soft")
    with pytest.raises(MaskError, match="`threshold=False` the mask is not binary"):
        trainer.save_model(tmp_path / "soft")
    assert not list(tmp_path.rglob("*.safetensors"))
