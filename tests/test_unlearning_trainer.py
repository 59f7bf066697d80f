"""What all unlearning trainers promise: the given model stays, the seed is the run, it goes on, the ledger is true."""

import copy
import json
import os
import warnings
from pathlib import Path

import datasets
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, TrainerCallback

from hf_esc.errors import (
    CheckpointError,
    DivergenceError,
    ForgetSetError,
    IncompleteErasureWarning,
    LabelError,
    ModelError,
    OptionError,
)
from hf_esc.unlearning import METHODS, DELETEArguments, NegGradArguments, UnlearningArguments
from hf_esc.unlearning.trainer import UnlearningTrainer

from .pictures import NAMES as COLOURS
from .pictures import labelled
from .pushing import tiny_vit
from .test_unlearning_batches import STREAM
from .test_unlearning_methods import NORMALISED
from .tiny import quietly, tiny
from .unlearning import C, forget_set, learnt, made, pictures, retain_set, rows, same, trained, weights
from .zoo import ZOO

SHORT = {"num_train_epochs": 2, "learning_rate": 0.01}


def statistics(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.named_buffers() if "running" in name}


class Stop(TrainerCallback):
    """As if the run were cut off after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step


# The given model


@pytest.mark.parametrize("method", ["delete", "lau", "salun", "retrain"])
def test_the_given_model_is_not_touched(method):
    model = copy.deepcopy(learnt()).train()
    next(model.parameters()).requires_grad_(False)
    before, config = copy.deepcopy(model), model.config.to_dict()
    trainer = trained(method, model, **SHORT)
    assert model.training
    for (name, value), (_, old) in zip(model.named_parameters(), before.named_parameters(), strict=True):
        assert torch.equal(value, old), name
        assert value.requires_grad == old.requires_grad, name
        assert value.grad is None, name
    assert same(dict(model.named_buffers()), dict(before.named_buffers()))
    assert model.config.to_dict() == config
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not same(weights(trainer.model), weights(model))


def test_what_comes_out_is_of_the_same_class_with_a_ledger():
    trainer = trained("delete", mask="all", **SHORT)
    assert type(trainer.model) is type(learnt())
    assert not trainer.model.training
    [record] = trainer.model.config.erasures
    expected = {"method": "delete", "labels": ["shade 1"], "label_ids": [1], "num_images": 24, "unchanged_of": 24}
    expected |= {"scenario": "classes", "mask": "all", "batch_norm": "auto", "temperature": 1.0, "data": "forget"}
    expected |= {"learning_rate": 0.01, "num_train_epochs": 2, "steps": 6, "batch_size": 8, "seed": 42}
    expected |= {"optim": "sgd", "optim_args": "momentum=0.9", "max_grad_norm": 1.0, "lr_scheduler_type": "constant"}
    assert record | expected == record
    assert json.loads(json.dumps(record)) == record
    after = trainer.logits_of_all(trainer.model, trainer.forget).argmax(1) == 1
    assert record["unchanged"] == after.double().mean().item()


def test_the_ledger_says_which_optimizer_it_was():
    step = (torch.optim.Adam, {"lr": 0.003})
    trainer = METHODS["delete"](learnt(), made("delete").args, forget_set(), optimizer_cls_and_kwargs=step)
    found = trainer.settings()
    assert (found["optim"], found["learning_rate"]) == ("Adam", 0.003)
    assert found["optim_args"] == "lr=0.003,betas=(0.9, 0.999),eps=1e-08"
    trainer.create_optimizer()
    assert type(trainer.optimizer) is torch.optim.Adam


@pytest.mark.parametrize("way", ["trainer", "model"])
def test_it_loads_as_a_plain_model_to_the_same_bits(way, tmp_path):
    model = tiny_vit()
    trainer = trained("delete", model, labelled([1] * 6, COLOURS), scenario="images", **SHORT)
    trainer.save_model(tmp_path) if way == "trainer" else trainer.model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert same(dict(loaded.state_dict()), dict(trainer.model.state_dict()))
    x = rows(trainer)["inputs"]
    with torch.no_grad():
        assert torch.equal(loaded(**x).logits, trainer.model(**x).logits)
    assert loaded.config.erasures == trainer.model.config.erasures
    assert str(tmp_path.parent) not in (tmp_path / "config.json").read_text()
    assert not list(tmp_path.glob("*.bin"))
    if way == "trainer":
        assert AutoImageProcessor.from_pretrained(tmp_path).size == model.image_processor.size


def test_nothing_is_saved_before_it_is_forgotten(tmp_path):
    trainer = made("delete", output_dir=str(tmp_path))
    with pytest.raises(ModelError, match="Nothing is erased yet"):
        trainer.save_model()
    trainer.create_model_card()
    assert not list(tmp_path.glob("*.safetensors"))
    assert not (tmp_path / "README.md").exists()


# BatchNorm


@pytest.mark.parametrize(
    ("method", "batch_norm", "learns"),
    [
        ("delete", "auto", False),
        ("delete", "eval", False),
        ("delete", "train", True),
        ("salun", "auto", True),
        ("salun", "eval", False),
        ("finetune", "auto", True),
    ],
)
def test_batch_norm_learns_from_retain_images_alone(method, batch_norm, learns):
    before = statistics(learnt())
    assert before
    after = statistics(trained(method, batch_norm=batch_norm, **SHORT).model)
    assert same(before, after) is not learns


def test_in_a_run_of_both_kinds_of_steps_only_those_with_retain_images_count():
    trainer, seen = made("scrub", **SHORT), []
    real = trainer.unlearning_loss

    def watched(model, forget, retain):
        before = statistics(model)
        loss = real(model, forget, retain)
        seen.append((retain is not None, not same(before, statistics(model))))
        return loss

    trainer.unlearning_loss = watched
    with pytest.warns(IncompleteErasureWarning):
        trainer.train()
    assert {kept for kept, _ in seen} == {True, False}
    assert all(kept is learnt for kept, learnt in seen)


# A run


def test_the_seed_is_the_run_whatever_was_drawn_since():
    one, again = (made("random-label", redraw=True, seed=seed, **SHORT) for seed in (1, 1))
    torch.manual_seed(99)
    other = made("random-label", redraw=True, seed=2, **SHORT)
    ends = []
    for trainer in (one, again, other):
        torch.rand(7)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IncompleteErasureWarning)
            trainer.train()
        ends.append(weights(trainer.model))
    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


def test_a_second_training_begins_anew():
    trainer = trained("delete", **SHORT)
    first = weights(trainer.model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IncompleteErasureWarning)
        trainer.train()
    assert same(first, weights(trainer.model))
    assert len(trainer.model.config.erasures) == 1


def test_gradients_are_clipped_to_the_norm():
    def moved(norm):
        trainer = trained("delete", max_steps=1, learning_rate=1.0, optim_args="momentum=0.0", max_grad_norm=norm)
        before = weights(learnt())
        return torch.cat([(value - before[name]).flatten() for name, value in weights(trainer.model).items()]).norm()

    assert moved(0.0) > 0.02
    assert moved(0.01).item() == pytest.approx(0.01, rel=1e-3)


def test_a_tolerance_stops_at_the_end_of_the_first_epoch_that_keeps_it():
    shares = []

    class Watch(TrainerCallback):
        def on_epoch_end(self, args, state, control, model, **kwargs):
            with torch.no_grad():
                right = model.eval()(**rows(trainer)["inputs"]).logits.argmax(1) == 1
            shares.append(right.double().mean().item())

    trainer = made(
        "delete", tolerance=0.1, num_train_epochs=50, learning_rate=2e-3, optim_args=None, callbacks=[Watch()]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IncompleteErasureWarning)
        trainer.train()
    assert 1 < trainer.state.epoch < 50
    assert trainer.state.epoch == int(trainer.state.epoch)
    assert 0 < shares[-1] <= 0.1  # one image of 24
    assert all(share > 0.1 for share in shares[:-1])


def test_the_number_of_steps_is_that_of_the_epochs_or_the_given_one():
    assert trained("delete", max_steps=4).state.global_step == 4
    assert trained("delete", num_train_epochs=1.5).state.global_step == 5
    scrub = {"retain_batch_size": 16}  # 3 + 3, 3 + 3 and then 3 in an epoch
    run = trained("scrub", **scrub)
    assert (run.state.global_step, run.state.max_steps) == (15, 15)
    run = trained("scrub", max_steps=17, **scrub)
    assert (run.state.global_step, run.state.max_steps) == (17, 17)


@pytest.mark.parametrize("method", ["delete", "neg-grad-plus"])
@pytest.mark.parametrize("vit", [False, True])
def test_accumulated_batches_are_one_larger_batch(method, vit):
    """Where BatchNorm is frozen, and whatever keywords a model's forward takes."""
    model = _knowing_vit() if vit else learnt()
    # Clipped, gradients of any scale would be the same.
    settings = {"batch_norm": "eval", "max_grad_norm": 0.0} | ({"alpha": 0.6} if method == "neg-grad-plus" else {})
    sets = ([pictures(1, 24)], [pictures(0, 24)])
    ends = [
        weights(
            trained(
                method,
                model,
                *sets,
                per_device_train_batch_size=12 // parts,
                gradient_accumulation_steps=parts,
                **settings,
                **SHORT,
            ).model
        )
        for parts in (1, 3)
    ]
    assert not same(ends[0], weights(model))
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-4, atol=1e-5)


def _knowing_vit():
    """A ViT that says 1 to some of the shade 1."""
    model = tiny_vit([f"shade {label}" for label in range(C)])
    with torch.no_grad():
        logits = model(pixel_values=pictures(1, 24)["pixel_values"]).logits.mean(0)
        model.classifier.bias += logits.max() - logits + 2 * torch.eye(C)[1]
    return model


def test_workers_make_no_difference():
    one, other = (trained("finetune", dataloader_num_workers=workers, num_train_epochs=1) for workers in (0, 1))
    assert same(weights(one.model), weights(other.model))


# Divergence

WILD = {"learning_rate": 1e6, "max_grad_norm": 0.0, "tolerance": None, "num_train_epochs": 50}


def test_a_run_that_diverges_says_so_and_leaves_its_last_good_checkpoint(tmp_path):
    stale = tmp_path / "checkpoint-777"
    stale.mkdir()
    os.utime(stale, (0, 0))

    class Wilder(TrainerCallback):
        def on_step_end(self, args, state, control, optimizer, **kwargs):
            for group in optimizer.param_groups:
                group["lr"] = 1e-4 if state.global_step < 6 else 1e12

    gentle = WILD | {"learning_rate": 1e-4, "save_strategy": "epoch", "output_dir": str(tmp_path)}
    trainer = made("neg-grad", callbacks=[Wilder()], **gentle)
    with pytest.raises(DivergenceError, match=r"neg-grad diverged at step \d+: .* Take a smaller .*0.0001") as raised:
        trainer.train()
    [kept] = tmp_path.glob("checkpoint-*")
    assert kept != stale
    assert f"The last good checkpoint is {kept}." in str(raised.value)
    loaded = AutoModelForImageClassification.from_pretrained(kept)
    assert all(torch.isfinite(value).all() for value in loaded.state_dict().values())
    with pytest.raises(ModelError, match="Nothing is erased yet"):
        trainer.save_model()


def test_without_checkpoints_it_says_that_there_is_none(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()  # of an earlier run
    trainer = made("neg-grad", output_dir=str(tmp_path), **WILD)
    with pytest.raises(
        DivergenceError, match=r"loss is .*There is no checkpoint to go back to.*1000000.0.*max_grad_norm.*0.0"
    ):
        trainer.train()


def test_a_weight_that_is_not_finite_is_caught_before_a_checkpoint_takes_the_place_of_the_good_one(tmp_path):
    class Break(TrainerCallback):
        """In a weight that no loss depends on."""

        def on_step_end(self, args, state, control, model, **kwargs):
            if state.global_step == 4:
                model.unused.data[0] = float("nan")

    model = copy.deepcopy(learnt())
    model.unused = torch.nn.Parameter(torch.zeros(2))
    settings = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1, "output_dir": str(tmp_path)}
    trainer = made("delete", model, callbacks=[Break()], **settings, **SHORT)
    with pytest.raises(DivergenceError, match=r"step 4: 'unused' is not finite.*checkpoint-2"):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


# A run that goes on

RUNS = {
    "delete, within an epoch": ("delete", {"save_strategy": "steps", "save_steps": 4}, 4),
    "delete, between epochs": ("delete", {"save_strategy": "epoch"}, 3),
    # Epochs of 6, 6, 3 and 3 steps.
    "scrub, in a short epoch": ("scrub", {"save_strategy": "steps", "save_steps": 16, "num_train_epochs": 4}, 16),
    "scrub, in a long epoch": ("scrub", {"save_strategy": "steps", "save_steps": 8}, 8),
    "scrub, between epochs": ("scrub", {"save_strategy": "steps", "save_steps": 12}, 12),
    "neg-grad-plus": ("neg-grad-plus", {"save_strategy": "steps", "save_steps": 5, "alpha": 0.6}, 5),
    "salun": ("salun", {"save_strategy": "steps", "save_steps": 5, "weight_decay": 0.1}, 5),
    "random labels, drawn anew": ("random-label", {"save_strategy": "steps", "save_steps": 4, "redraw": True}, 4),
    "l1-sparse": ("l1-sparse", {"save_strategy": "steps", "save_steps": 4, "gamma": 0.01}, 4),
    "bad teacher": ("bad-teacher", {"save_strategy": "steps", "save_steps": 3, "retain_share": 0.8}, 3),
    "lau": ("lau", {"save_strategy": "steps", "save_steps": 4}, 4),
    "accumulated": (
        "delete",
        {
            "save_strategy": "steps",
            "save_steps": 3,
            "gradient_accumulation_steps": 2,
            "per_device_train_batch_size": 4,
        },
        3,
    ),
    "a schedule": ("delete", {"save_strategy": "steps", "save_steps": 4, "lr_scheduler_type": "cosine"}, 4),
}


@pytest.mark.parametrize("run", RUNS)
def test_a_run_that_goes_on_is_the_run_that_was_not_stopped(run, tmp_path):
    method, settings, stop = RUNS[run]
    settings = {"num_train_epochs": 3, "learning_rate": 0.01, "retain_batch_size": 16} | settings
    whole = trained(method, **settings | {"save_strategy": "no"})
    trained(method, callbacks=[Stop(stop)], output_dir=str(tmp_path), **settings)
    again = made(method, output_dir=str(tmp_path), **settings)
    torch.manual_seed(1234)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IncompleteErasureWarning)
        again.train(str(tmp_path / f"checkpoint-{stop}"))
    assert whole.state.global_step == again.state.global_step > stop
    assert same(dict(whole.model.state_dict()), dict(again.model.state_dict()))
    records = [
        {**trainer.model.config.erasures[-1], "date": None, "record_sha256": None} for trainer in (whole, again)
    ]
    assert records[0] == records[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.02}, r"learning_rate was 0.01 and is 0.02"),
        ({"seed": 1}, "seed was 42 and is 1"),
        ({"temperature": 2.0}, "temperature was 1.0 and is 2.0"),
        ({"num_train_epochs": 5}, "num_train_epochs was 2 and is 5"),
        ({"forget": [pictures(2, 24)]}, "labels was"),
        ({"forget": [pictures(1, 24, seed=5)]}, "is of another run: forget images was"),
        ({"warmup_steps": 3}, "warmup_steps was 0 and is 3"),
        ({"model": copy.deepcopy(tiny([f"shade {i}" for i in range(C)])), "scenario": "images"}, "model was"),
        ({"method": "neg-grad"}, "method was 'delete' and is 'neg-grad'"),
    ],
)
def test_a_run_does_not_go_on_with_other_settings(change, message, stopped):
    change = {"method": "delete"} | SHORT | change
    if change["method"] == "delete" and "forget" in change:
        change["retain"] = [pictures(0, 4)]
    with pytest.raises(CheckpointError, match=message):
        made(**change).train(str(stopped))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    trained("delete", callbacks=[Stop(3)], save_strategy="epoch", output_dir=str(folder), **SHORT)
    return folder / "checkpoint-3"


def test_a_folder_that_is_no_checkpoint_of_a_run_is_refused(tmp_path):
    learnt().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is no checkpoint of delete"):
        made("delete").train(str(tmp_path))


def test_a_checkpoint_holds_no_pickle_and_no_ledger(stopped):
    files = {file.name for file in stopped.iterdir()}
    assert {"model.safetensors", "optimizer.safetensors", "rng_state_0.safetensors", "unlearning.json"} <= files
    assert not {name for name in files if name.endswith((".bin", ".pt", ".pth"))}
    assert "erasures" not in json.loads((stopped / "config.json").read_text())


def test_the_best_checkpoint_is_the_one_that_the_ledger_speaks_of(tmp_path):
    trainer = trained(
        "delete",
        eval_dataset=retain_set(4),
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        output_dir=str(tmp_path),
        num_train_epochs=3,
        learning_rate=0.05,
    )
    assert trainer.state.best_global_step < trainer.state.global_step
    assert trainer.model.config.erasures[-1]["steps"] == trainer.state.best_global_step
    best = AutoModelForImageClassification.from_pretrained(trainer.state.best_model_checkpoint)
    assert same(weights(best), weights(trainer.model))


# Refused

FROZEN = copy.deepcopy(learnt()).requires_grad_(False)


def offloaded():
    with torch.device("meta"):
        return tiny([f"shade {label}" for label in range(C)])


def erased():
    return quietly(learnt(), forget_set(), rank=1)


REFUSED = {
    "no forget set": (lambda: METHODS["delete"](learnt(), None), ForgetSetError, "`forget_set`"),
    "no retain set": (lambda: METHODS["scrub"](learnt(), None, forget_set()), ForgetSetError, "needs a `retain_set`"),
    "an empty forget set": (lambda: made("delete", forget=[]), ForgetSetError, "forget set is empty"),
    "an empty retain set": (lambda: made("scrub", retain=[]), ForgetSetError, "retain set is empty"),
    "shared images": (
        lambda: made("finetune", retain=[*retain_set(), pictures(1, 2)]),
        ForgetSetError,
        "share 2 images, such as row 48",
    ),
    "a forgotten class in the retain set": (
        lambda: made("finetune", retain=[*retain_set(), pictures(1, 2, seed=5)]),
        LabelError,
        "retain set has images of shade 1, which is to be forgotten",
    ),
    "all classes": (
        lambda: made("delete", forget=[pictures(label, 2) for label in range(C)]),
        LabelError,
        "All 4 classes .* take `scenario='images'`",
    ),
    "an erased model": (lambda: made("delete", erased()), ModelError, "This is an erased model"),
    "the inside of an erased model": (lambda: made("delete", erased().model), ModelError, "inside of an erased model"),
    "an offloaded model": (lambda: made("delete", offloaded()), ModelError, "offloaded"),
    "a frozen model": (lambda: made("delete", FROZEN), ModelError, "All weights of the model are frozen"),
    "arguments of another method": (
        lambda: METHODS["delete"](learnt(), NegGradArguments("x"), forget_set()),
        TypeError,
        "DELETEArguments, not NegGradArguments",
    ),
    "a stream": (lambda: made("delete", forget=STREAM.to_iterable_dataset()), ForgetSetError, "is a stream, and it"),
    "splits": (lambda: made("delete", forget=datasets.DatasetDict(a=STREAM)), ForgetSetError, r"one split.*\['a'\]"),
    "a label beyond": (lambda: made("delete", forget=[pictures(4, 2)]), LabelError, "labels from 4 to 4"),
    "wrong about all": (
        lambda: made("delete", forget=[{**pictures(1, 4), "labels": torch.full((4,), 2)}]),
        ForgetSetError,
        "There is nothing to do: the model gives none of the 4",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_trained_on_is_said(what):
    make, error, message = REFUSED[what]
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scenario", "both"),
        ("mask", "none"),
        ("batch_norm", "off"),
        ("tolerance", 1.0),
        ("tolerance", -0.1),
        ("retain_batch_size", 0),
        ("image_memory", -1),
        ("num_train_epochs", 0),
        ("learning_rate", 0.0),
        ("label_smoothing_factor", 0.1),
        ("bf16_full_eval", True),
        ("auto_find_batch_size", True),
        ("hub_strategy", "every_save"),
    ],
)
def test_a_value_out_of_its_range_is_named(name, value):
    with pytest.raises(OptionError, match=name):
        UnlearningArguments("x", use_cpu=True, **{name: value})


def test_scrub_does_not_add_up_steps_up_and_down():
    with pytest.raises(OptionError, match="gradient_accumulation_steps"):
        made("scrub", gradient_accumulation_steps=2)


# Images, not classes


def test_images_of_all_classes_can_be_forgotten_without_a_class_in_the_ledger():
    forget, retain = [pictures(label, 6) for label in range(C)], [pictures(label, 6, seed=1) for label in range(C)]
    trainer = made("finetune", forget=forget, retain=retain, scenario="images", num_train_epochs=1)
    trainer.train()  # without a warning, though most of it stays right
    [record] = trainer.model.config.erasures
    assert record["unchanged"] > 0.5
    assert record["labels"] is record["label_ids"] is record["unchanged_by_label"] is None
    assert record["num_images"] == 24


def test_a_class_that_stays_is_warned_of():
    trainer = made("delete", learning_rate=1e-9, num_train_epochs=1)
    with pytest.warns(
        IncompleteErasureWarning,
        match=r"after delete, \d+.\d% of the forget images are classified as their labels say",
    ):
        trainer.train()


# What is looked at


def test_accuracies_are_in_percent_of_one_set_or_several():
    trainer = trained("delete", eval_dataset={"forget": forget_set(), "retain": retain_set()}, **SHORT)
    found = trainer.evaluate()
    for name, images in (("forget", trainer.forget), ("retain", trainer.evaluation_set(retain_set()))):
        right = trainer.logits_of_all(trainer.model, images).argmax(1) == images.labels
        assert found[f"eval_{name}_accuracy"] == pytest.approx(100 * right.double().mean().item())
    assert trainer.evaluate(retain_set())["eval_accuracy"] == found["eval_retain_accuracy"]
    assert trainer.predict(retain_set()).metrics["test_accuracy"] == found["eval_retain_accuracy"]
    assert trainer.evaluate({"all": retain_set()})["eval_all_accuracy"] == found["eval_retain_accuracy"]


def test_data_sets_are_evaluated_as_batches_are():
    trainer = made("delete", tiny_vit(), labelled([1] * 6, COLOURS), scenario="images", remove_unused_columns=True)
    data = labelled([0, 1, 2, 3] * 3, COLOURS)
    images = trainer.evaluation_set(data)
    right = trainer.logits_of_all(trainer.model, images).argmax(1) == images.labels
    assert trainer.evaluate(data)["eval_accuracy"] == pytest.approx(100 * right.double().mean().item())


# Every architecture

OF_ZOO = (
    "vit",
    "deit",
    "deit-with-teacher",
    "levit",
    "convnext",
    "swin",
    "resnet",
    "perceiver-learned",
    "mobilenet-v2",
)


@pytest.mark.parametrize("method", ["delete", "lau", "boundary-shrink"])
@pytest.mark.parametrize("id", OF_ZOO)
def test_architectures_are_trained_or_refused_by_name(id, method, tmp_path):
    model = ZOO[id].build()
    inputs = ZOO[id].inputs(batch_size=8)
    with torch.no_grad():
        labels = model(**inputs).logits.argmax(dim=1)
    given = [inputs | {"labels": labels}]
    settings = {"scenario": "images", "learning_rate": 0.05, "num_train_epochs": 3, "output_dir": str(tmp_path)}
    if method == "boundary-shrink":
        settings["processing_class"] = NORMALISED
    before = weights(model)
    trainer = trained(method, model, given, **settings)
    assert same(weights(model), before)
    after = weights(trainer.model)
    assert not same(after, before)
    with torch.no_grad():
        old, new = (
            network(**inputs).logits.log_softmax(1).gather(1, labels[:, None]) for network in (model, trainer.model)
        )
    assert new.mean() < old.mean()
    trainer.save_model()
    loaded = type(model).from_pretrained(tmp_path)
    assert same(weights(loaded), after)


def test_a_gray_model_is_trained():
    model = tiny(COLOURS, num_channels=1)
    x = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = model(pixel_values=x).logits.argmax(1)
    trainer = trained("delete", model, [{"pixel_values": x, "labels": labels}], scenario="images", **SHORT)
    assert not same(weights(trainer.model), weights(model))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", METHODS)
def test_on_a_gpu_a_model_on_the_cpu_is_trained_and_stays_there(method):
    settings = {"processing_class": NORMALISED} if method == "boundary-shrink" else {}
    trainer = trained(method, use_cpu=False, **SHORT, **settings)
    assert {value.device.type for value in trainer.model.parameters()} == {"cuda"}
    assert {value.device.type for value in learnt().parameters()} == {"cpu"}
    assert trainer.model.config.erasures[-1]["method"] == method


def test_a_head_that_lau_cannot_train_alone_is_refused(monkeypatch):
    monkeypatch.setattr("hf_esc.unlearning.layer_attack.head_weights", lambda *args: None)
    with pytest.raises(ModelError, match="cannot be trained on features alone"):
        made("lau")


def test_every_method_has_its_own_arguments():
    assert issubclass(DELETEArguments, UnlearningArguments)
    kinds = [trainer.arguments for trainer in METHODS.values()]
    assert len({*kinds}) == len(kinds)
    for name, trainer in METHODS.items():
        assert issubclass(trainer, UnlearningTrainer)
        assert trainer.method == name
