"""A run that goes on is the run that was not stopped: the same weights, from checkpoints without pickle."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments, ViTConfig, ViTForImageClassification

from hf_esc.errors import CheckpointError
from hf_esc.training.safetensors_trainer import SafetensorsTrainer


class Pictures(torch.utils.data.Dataset):
    def __init__(self, model):
        generator = torch.Generator().manual_seed(0)
        size = model.config.image_size
        self.pixels = torch.randn(24, 3, size, size, generator=generator)
        self.labels = torch.arange(24) % model.config.num_labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}


def trainer(model, folder, **options) -> SafetensorsTrainer:
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **{"num_train_epochs": 4, "save_strategy": "epoch"} | options,
    )
    return SafetensorsTrainer(
        copy.deepcopy(model), arguments, train_dataset=Pictures(model), eval_dataset=Pictures(model)
    )


def vit_of(seed: int) -> ViTForImageClassification:
    """transformers writes its weights under other names than they have in the model."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        return ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, num_labels=4, **sizes))


@pytest.fixture(scope="module")
def vit():
    return vit_of(0)


def test_a_run_that_goes_on_ends_where_the_whole_run_does(vit, tmp_path):
    whole = trainer(vit, tmp_path / "whole")
    whole.train()
    torch.manual_seed(7)
    again = trainer(vit_of(1), tmp_path / "again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], weight), name


def test_the_best_model_is_the_one_of_its_checkpoint(vit, tmp_path):
    run = trainer(
        vit,
        tmp_path,
        eval_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the first, and not the last
    )
    run.train()
    assert run.state.best_global_step < run.state.global_step
    best = type(vit).from_pretrained(run.state.best_model_checkpoint)
    for name, weight in best.state_dict().items():
        assert torch.equal(run.model.state_dict()[name], weight), name


def test_no_checkpoint_holds_a_pickle(vit, tmp_path):
    trainer(vit, tmp_path, num_train_epochs=1).train()
    files = {file.name for file in (tmp_path / "checkpoint-3").iterdir()}
    assert {"model.safetensors", "optimizer.safetensors", "rng_state_0.safetensors"} <= files
    assert not {name for name in files if name.endswith((".bin", ".pt", ".pth"))}


def test_a_checkpoint_without_all_weights_is_refused(vit, tmp_path):
    run = trainer(vit, tmp_path)
    run.train()
    file = tmp_path / "checkpoint-6" / "model.safetensors"
    weights = load_file(file)
    weights.pop("classifier.weight")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks weights of ViTForImageClassification: .+classifier"):
        trainer(vit, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
