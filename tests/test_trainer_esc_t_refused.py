"""What ESC-T turns down: forget sets with nothing to forget, masks that erase nothing, other runs' checkpoints."""

import copy
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainingArguments, ViTImageProcessor

from hf_esc import ESCTTrainer, ESCTTrainingArguments
from hf_esc.errors import (
    CheckpointError,
    ForgetSetError,
    LabelError,
    MaskError,
    NonFiniteError,
    OptionError,
)

from .esc_t import BAG, TROUSER, arguments, factor, made, rows, soft, trained
from .pictures import NAMES, labelled
from .tiny import images, tiny

PROCESSOR = ViTImageProcessor(size={"height": 16, "width": 16})


@pytest.fixture(scope="module")
def few(resnet, fashion):
    """The features of 200 images of a class, as a batch."""
    return rows(made(resnet, fashion.select(fashion.train, [TROUSER]).select(range(200))).train_dataset)


# Arguments.


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"tau": 1.0}, "`tau` is a threshold from 0 up to but not including 1, and `tau=1.0`"),
        ({"tau": -0.1}, "and `tau=-0.1`"),
        ({"tau": float("nan")}, "and `tau=nan`"),
        ({"tolerance": 1.0}, "`tolerance` is a share from 0 up to but not including 1, not 1.0"),
        ({"tolerance": -0.01}, "not -0.01"),
        ({"loss_normalization": "mean"}, "`loss_normalization` is one of correct, batch, not 'mean'"),
        ({"feature_cache": "gpu"}, "`feature_cache` is one of auto, memory, disk, not 'gpu'"),
        ({"feature_batch_size": 0}, "`feature_batch_size` is 1 or more"),
        ({"num_train_epochs": 0}, "`num_train_epochs` is above 0, and it is 0"),
        ({"feature_memory": -1}, "`feature_memory` 0 or more"),
        (
            {"hub_strategy": "every_save"},
            "(?i)`hub_strategy=.*every_save'` would push a model in training, .*Use 'end'",
        ),
        ({"hub_strategy": "all_checkpoints"}, "would push a model in training"),
        ({"label_smoothing_factor": 0.1}, "has no use here: the loss is ESC-T's"),
        ({"fsdp": True}, "has no use here"),
    ],
    ids=str,
)
def test_an_argument_that_makes_no_sense_is_refused(bad, message):
    with pytest.raises(OptionError, match=message):
        arguments(**bad)


def test_arguments_of_another_trainer_and_no_data_are_refused(resnet, few, tmp_path):
    with pytest.raises(
        TypeError, match="`args` of ESCTTrainer should be ESCTTrainingArguments, not TrainingArguments"
    ):
        ESCTTrainer(resnet, TrainingArguments(str(tmp_path), use_cpu=True), [few])
    with pytest.raises(ForgetSetError, match="needs the images to forget, or their features, as `forget_set`"):
        ESCTTrainer(resnet, arguments())


# Forget sets.


@pytest.mark.parametrize(
    "empty",
    [
        [],
        iter(()),
        labelled([0], NAMES).select([]),
        [{"features": torch.empty(0, 8), "labels": torch.empty(0).long()}],
    ],
    ids=["list", "iterator", "Dataset", "features"],
)
def test_an_empty_forget_set_is_refused(empty):
    with pytest.raises(ForgetSetError, match="The forget set is empty"):
        ESCTTrainer(tiny(), arguments(), empty, processing_class=PROCESSOR)


def test_an_empty_column_of_features_is_refused(resnet):
    with pytest.raises(ForgetSetError, match="The forget set is empty"):
        made(resnet, Dataset.from_dict({"features": [[0.0] * 128], "label": [1]}).select([]))


@pytest.mark.parametrize(
    ("forget_set", "error", "message"),
    [
        ([{"pixel_values": images(4)}], ForgetSetError, "needs the label of each image, and batch 0 has none"),
        (labelled([0] * 4).remove_columns("label"), ForgetSetError, "needs the label of each image, and batch 0"),
        ([{"pixel_values": images(4), "labels": torch.full((4,), 4)}], LabelError, "range from 4 to 4, .* 4 classes"),
        ([{"pixel_values": images(4), "labels": torch.full((4,), -1)}], LabelError, "range from -1 to -1"),
        (labelled([0, 7]), LabelError, "labels from 0 to 7, beyond the 4 classes"),
        ([{"pixel_values": images(4), "labels": torch.arange(4)}], LabelError, "All 4 classes .* nothing to keep"),
        (labelled([0, 1, 2, 3], NAMES), LabelError, "All 4 classes"),
        (DatasetDict(train=labelled([0]), test=labelled([0])), ForgetSetError, r"has \['train', 'test'\]. Choose one"),
        (3, ForgetSetError, "A forget set is a data set or an iterable of batches, not int"),
        ([images(2)], ForgetSetError, "orget set is a"),
        (
            [{"pixel_values": images(4).index_fill(0, torch.tensor(2), torch.nan), "labels": torch.zeros(4).long()}],
            NonFiniteError,
            "Batch 0 of the",
        ),
    ],
)
def test_what_cannot_be_forgotten_is_refused(forget_set, error, message):
    with pytest.raises(error, match=message):
        ESCTTrainer(tiny(), arguments(), forget_set, processing_class=PROCESSOR)


def broken(few, **changes):
    return [few, {name: part for name, part in (few | changes).items() if part is not None}]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": torch.ones(200, 64)}, ForgetSetError, r"Batch 1 .* \(200, 64\) .* the head reads \(N, 128\)"),
        ({"features": torch.ones(128)}, ForgetSetError, r"Batch 1 has features of the shape \(128,\)"),
        ({"labels": torch.ones(3).long()}, ForgetSetError, r"Batch 1 .* labels of \(3,\)"),
        ({"labels": torch.ones(200)}, LabelError, "The labels of batch 1 range from 1.0 to 1.0"),
        ({"labels": torch.full((200,), 10)}, LabelError, "range from 10 to 10, and the model has 10 classes"),
        ({"labels": torch.full((200,), -1)}, LabelError, "range from -1 to -1"),
        ({"labels": None}, ForgetSetError, "Batch 1 of features should hold `features` and `labels`"),
        ({"features": torch.full((200, 128), torch.inf)}, NonFiniteError, "Batch 1 of features has entries that"),
        ({"features": torch.full((200, 128), torch.nan)}, NonFiniteError, "Batch 1 of features has entries that"),
    ],
)
def test_features_that_are_not_the_heads_are_refused(resnet, few, change, error, message):
    with pytest.raises(error, match=message):
        made(resnet, broken(few, **change))


def test_where_nothing_is_right_there_is_nothing_to_do(resnet, few):
    with pytest.raises(ForgetSetError, match="nothing to do: the model gives none of the 200 forget images the class"):
        made(resnet, [few | {"labels": torch.full((200,), BAG)}])


def test_what_is_forgotten_already_is_nothing_to_do(resnet, few, fashion):
    erased = trained(resnet, [few]).erased_model
    with pytest.raises(ForgetSetError, match="Were they erased before"):
        made(erased, fashion.select(fashion.train, [TROUSER]).select(range(50)))


def test_classes_that_were_erased_before_count(resnet, few):
    first = trained(resnet, [few]).erased_model
    rest = torch.tensor([label for label in range(10) if label != TROUSER])
    with pytest.raises(LabelError, match="All 10 classes of the model are to be forgotten"):
        made(first, [{"features": few["features"][:9], "labels": rest}])


# Masks.


def test_a_mask_that_erases_nothing_is_an_error(resnet, few):
    trainer = made(resnet, [few], learning_rate=1e-3, num_train_epochs=2)
    with pytest.raises(MaskError, match=r"After 8 steps, mask 0 of 1 is one of ones: it erases nothing"):
        trainer.train()
    assert trainer.erased_model is None


def test_a_mask_that_leaves_nothing_is_an_error(resnet, few):
    class Halve(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            model.masks[0].data.fill_(0.5)

    trainer = made(resnet, [few], num_train_epochs=2, tau=0.99, callbacks=[Halve()])
    with pytest.raises(MaskError, match="is one of zeros: it leaves no feature"):
        trainer.train()


# Checkpoints.


@pytest.fixture(scope="module")
def checkpoint(resnet, few, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trained(resnet, [few], output_dir=str(folder), save_strategy="steps", save_steps=10)
    return folder / "checkpoint-10"


def changed(checkpoint, folder, change):
    """A copy of a checkpoint, with a change to the tensors of its mask."""
    folder.mkdir()
    for path in Path(checkpoint).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    file = folder / "mask.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    change(tensors, metadata)
    save_file(tensors, file, metadata=metadata)
    return str(folder)


CHANGES = {
    "no basis": (lambda tensors, _: tensors.pop("basis.0"), "is a mask of another model: it holds"),
    "another width": (lambda tensors, _: tensors.update({"mask.0": torch.ones(64, 64)}), "of another model: it holds"),
    "one more mask": (lambda tensors, _: tensors.update({"mask.1": torch.ones(2, 2)}), "of another model: it holds"),
    "no digest": (lambda _, metadata: metadata.pop("head"), "the weights of its head are others"),
    "not finite": (lambda tensors, _: tensors["mask.0"][0].fill_(torch.nan), "has a mask that is not finite"),
    "another basis": (
        lambda tensors, _: tensors.update({"basis.0": torch.eye(128)}),
        "its basis is not that of these",
    ),
    "no basis at all": (lambda tensors, _: tensors["basis.0"].zero_(), "its basis is not that of these"),
    "a basis that is NaN": (lambda tensors, _: tensors["basis.0"].fill_(torch.nan), "its basis is not that of these"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_checkpoint_that_does_not_fit_is_refused(resnet, few, checkpoint, name, tmp_path):
    change, message = CHANGES[name]
    trainer = made(resnet, [few])
    with pytest.raises(CheckpointError, match=message):
        trainer.train(changed(checkpoint, tmp_path / "changed", change))
    assert torch.equal(soft(trainer), torch.ones(128, 128))
    assert trainer.erased_model is None


def test_a_checkpoint_of_another_model_or_of_other_images_is_refused(resnet, few, checkpoint, fashion):
    other = copy.deepcopy(resnet)
    with torch.no_grad():
        other.classifier[1].bias[0] += 0.1
    with pytest.raises(CheckpointError, match="is a mask of another model: the weights of its head are others"):
        made(other, [few]).train(str(checkpoint))
    bags = fashion.select(fashion.train, [BAG]).select(range(100))
    with pytest.raises(CheckpointError, match="for other images or another backbone: its basis is not that of these"):
        made(resnet, bags).train(str(checkpoint))


@pytest.mark.parametrize("file", ["mask.safetensors", "optimizer.safetensors", "rng_state_0.safetensors"])
@pytest.mark.parametrize("share", [0, 0.5, 0.999])
def test_a_checkpoint_that_was_cut_off_is_refused(resnet, few, checkpoint, file, share, tmp_path):
    folder = changed(checkpoint, tmp_path / "cut", lambda *_: None)
    whole = (tmp_path / "cut" / file).read_bytes()
    (tmp_path / "cut" / file).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=file.replace(".", r"\.")):
        made(resnet, [few]).train(folder)


def test_a_folder_without_a_mask_is_no_checkpoint(resnet, few, tmp_path):
    with pytest.raises(CheckpointError, match="holds no mask of ESC-T"):
        made(resnet, [few]).train(str(tmp_path))


def test_a_basis_with_other_signs_is_not_refused_and_is_taken_over(resnet, few, checkpoint, tmp_path):
    """The eigenvectors of another machine: the mask in the checkpoint is one over its own basis."""
    trainer = made(resnet, [few])
    own = trainer.model.bases[0].clone()
    trainer.train(changed(checkpoint, tmp_path / "signs", lambda tensors, _: tensors["basis.0"].neg_()))
    assert torch.equal(factor(trainer).basis, -own)
    assert trainer.erased_model.config.erasures[0]["unchanged"] == 0


def test_a_tolerance_that_is_met_already_is_nothing_to_do(resnet, few):
    wrong = {"features": few["features"], "labels": torch.full_like(few["labels"], BAG)}
    both = {name: torch.cat([wrong[name], few[name][:1]]) for name in few}
    with pytest.raises(ForgetSetError, match=r"`tolerance=0.5` lets that many stay"):
        made(resnet, [both], tolerance=0.5)


# transformers 5.20 knows the second name alone; later versions deprecate it.
NAMES_OF_CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")
CHECKPOINTING = next(name for name in NAMES_OF_CHECKPOINTING if name in TrainingArguments.__dataclass_fields__)


@pytest.mark.parametrize("name", [CHECKPOINTING, "neftune_noise_alpha"])
def test_arguments_of_a_backbone_are_refused(name, tmp_path):
    with pytest.raises(OptionError, match=f"`{name}` has no use here"):
        ESCTTrainingArguments(tmp_path, **{name: True})


def test_rows_of_different_lengths_are_refused(resnet):
    ragged = Dataset.from_dict({"features": [[1.0, 2.0], [1.0]], "label": [1, 1]})
    with pytest.raises(ForgetSetError, match="rows of different lengths"):
        made(resnet, ragged)
