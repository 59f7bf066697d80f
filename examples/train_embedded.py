"""
Train the three checkpoints that hf_esc ships, and select the part of the data set that it embeds.

These commands made the committed files (Fashion-MNIST, 20,000 training and 5,000 test images in parquet):

    python examples/train_embedded.py --dataset fashion_mnist_25k --embed_data True --output_dir build/data
    python examples/train_embedded.py --dataset fashion_mnist_25k --architecture vit --output_dir build/vit
    python examples/train_embedded.py --dataset fashion_mnist_25k --architecture all-cnn --output_dir build/all-cnn \
        --num_train_epochs 8
    python examples/train_embedded.py --dataset fashion_mnist_25k --architecture resnet --output_dir build/resnet \
        --num_train_epochs 24

Each folder was then copied to `hf_esc/embedded/`. `--dataset fashion_mnist` takes the whole data set from the Hub. The
script takes every argument of `transformers.TrainingArguments` too. Set `OMP_NUM_THREADS=1` on a machine with few
cores.
"""

import json
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import (
    EvalPrediction,
    HfArgumentParser,
    PretrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    set_seed,
)

from hf_esc.all_cnn import AllCNNConfig, AllCNNForImageClassification
from hf_esc.data import ImageData, image_batches, load_images
from hf_esc.training.safetensors_trainer import SafetensorsTrainer

IMAGE_SIZE = 28
TRAIN_IMAGES_PER_CLASS, TEST_IMAGES_PER_CLASS = 700, 200


@dataclass
class Arguments:
    dataset: str = field(metadata={"help": "A parquet or image folder, or an id on the Hub."})
    architecture: str = field(default="vit", metadata={"help": "vit, all-cnn or resnet."})
    embed_data: bool = field(
        default=False, metadata={"help": "Write the embedded part of the data set, and do not train."}
    )
    exclude: str = field(default="", metadata={"help": "A class name to train without: the Retrain reference."})
    exclude_fraction: float = field(
        default=0.0,
        metadata={"help": "Train without this fraction of the embedded images, drawn as the benchmark draws it."},
    )


@dataclass
class Training(TrainingArguments):
    """`TrainingArguments` with the settings of the committed checkpoints as defaults."""

    num_train_epochs: float = 12
    per_device_train_batch_size: int = 64
    per_device_eval_batch_size: int = 250
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 300
    label_smoothing_factor: float = 0.0
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    save_total_limit: int = 1
    logging_steps: int = 100
    seed: int = 0
    remove_unused_columns: bool = False


def build_model(architecture: str, label_names: list[str]) -> PreTrainedModel:
    names = {
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: index for index, name in enumerate(label_names)},
    }
    if architecture == "vit":
        config: PretrainedConfig = ViTConfig(
            image_size=IMAGE_SIZE,
            patch_size=4,
            hidden_size=96,
            num_hidden_layers=5,
            num_attention_heads=4,
            intermediate_size=384,
            **names,
        )
        return ViTForImageClassification(config)
    if architecture == "resnet":
        config = ResNetConfig(
            embedding_size=32, hidden_sizes=[32, 64, 128], depths=[1, 1, 1], layer_type="basic", **names
        )
        return ResNetForImageClassification(config)
    if architecture == "all-cnn":
        return AllCNNForImageClassification(AllCNNConfig(**names))
    raise ValueError(f"`architecture` is vit, all-cnn or resnet, not {architecture!r}.")


def image_processor() -> ViTImageProcessor:
    """Pixels in [0, 1], normalised by the mean and standard deviation of Fashion-MNIST."""
    return ViTImageProcessor(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=[0.286] * 3, image_std=[0.353] * 3
    )


class Pixels(torch.utils.data.Dataset):
    """All images of a split as one tensor, so that they are preprocessed once and not in every epoch."""

    def __init__(self, data: ImageData, split, processor):
        columns = {"image_column": data.image_column, "label_column": data.label_column}
        batches = list(image_batches(split, processor, batch_size=500, **columns))
        self.pixel_values = torch.cat([batch["pixel_values"] for batch in batches])
        self.labels = torch.cat([batch["labels"] for batch in batches])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return {"pixel_values": self.pixel_values[index], "labels": self.labels[index]}


class AugmentingTrainer(SafetensorsTrainer):
    """Trains on mirrored images shifted by up to two pixels."""

    def training_step(self, model, inputs, *args, **kwargs):
        pixels = inputs["pixel_values"]
        mirrored = torch.rand(len(pixels), 1, 1, 1) < 0.5
        pixels = torch.where(mirrored, pixels.flip(3), pixels)
        rows, columns = torch.randint(-2, 3, (2,)).tolist()
        background = pixels.amin()  # black, after normalisation
        padded = torch.nn.functional.pad(pixels, (2, 2, 2, 2), value=background.item())
        top, left = 2 + rows, 2 + columns
        inputs["pixel_values"] = padded[:, :, top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]
        return super().training_step(model, inputs, *args, **kwargs)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": 100 * float((prediction.predictions.argmax(axis=1) == prediction.label_ids).mean())}


def chosen_per_class(data: ImageData, split, count: int) -> np.ndarray:
    """The rows of the first `count` images of every class, in the order of the data set."""
    labels = np.asarray(split[data.label_column][:])
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in range(data.num_labels)]))


def per_class(data: ImageData, split, count: int):
    """The first `count` images of every class, in the order of the data set."""
    return split.select(chosen_per_class(data, split, count))


def main() -> None:
    arguments, training = HfArgumentParser((Arguments, Training)).parse_args_into_dataclasses()
    data = load_images(arguments.dataset)
    if data.test is None:
        raise SystemExit("The data set has no test split.")
    output = Path(training.output_dir)
    train_part = per_class(data, data.train, TRAIN_IMAGES_PER_CLASS)
    test_part = per_class(data, data.test, TEST_IMAGES_PER_CLASS)
    if arguments.embed_data:
        output.mkdir(parents=True, exist_ok=True)
        train_part.to_parquet(output / "train.parquet")
        test_part.to_parquet(output / "test.parquet")
        return
    if arguments.exclude and arguments.exclude_fraction:
        raise SystemExit("A reference leaves out a class or some images, not both. Give one of the two options.")
    names = data.label_names
    if names is None:
        raise SystemExit("The data set has no label names.")

    set_seed(training.seed)
    model = build_model(arguments.architecture, names)
    processor = image_processor()
    train = data.train
    if arguments.exclude:
        train = data.select(train, [names.index(arguments.exclude)], keep=False)
    if arguments.exclude_fraction:
        embedded = chosen_per_class(data, data.train, TRAIN_IMAGES_PER_CLASS)
        gone = embedded[replace(data, train=train_part).rows_to_forget(arguments.exclude_fraction)]
        train = train.select(np.setdiff1d(np.arange(len(train)), gone))
    trainer = AugmentingTrainer(
        model=model,
        args=training,
        train_dataset=Pixels(data, train, processor),
        eval_dataset=Pixels(data, test_part, processor),
        compute_metrics=accuracy,
    )
    start = time.perf_counter()
    resume = any(output.glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=resume)
    seconds = time.perf_counter() - start
    scores = {
        "embedded_test": trainer.evaluate()["eval_accuracy"],
        "embedded_train": trainer.evaluate(Pixels(data, train_part, processor))["eval_accuracy"],
    }
    final = output / "final"
    trainer.save_model(str(final))
    processor.save_pretrained(final)
    log = {
        "command": f"examples/train_embedded.py --dataset {Path(arguments.dataset).name} "
        f"--architecture {arguments.architecture}"
        + (f" --exclude {arguments.exclude}" if arguments.exclude else "")
        + (f" --exclude_fraction {arguments.exclude_fraction}" if arguments.exclude_fraction else ""),
        "train_images": len(train),
        "parameters": model.num_parameters(),
        "accuracy": scores,
        "seconds": round(seconds, 1),
        "resumed": resume,
        "threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "settings": {name: getattr(training, name) for name in Training.__annotations__},
        "log": trainer.state.log_history,
    }
    (final / "training.json").write_text(json.dumps(log, indent=1, default=str) + "\n")
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
