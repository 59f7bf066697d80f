"""`hf-esc train`: ESC-T with every argument of the training."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from ..errors import OptionError, OutputError
from .job import Clock, collected_warnings
from .measure import before_and_after
from .report import print_erasure


@dataclass
class Arguments:
    """What to erase from what, and how to report it."""

    model: str = field(metadata={"help": "A folder, an id on the Hub, or `embedded`."})
    dataset: str = field(metadata={"help": "An id on the Hub, a folder of parquet files or of images, or `embedded`."})
    forget: list[str] = field(
        metadata={"help": "Classes to forget, by name or number, several with spaces or commas."}
    )
    evaluate: bool = field(default=True, metadata={"help": "Measure accuracies before and after."})
    json: bool = field(default=False, metadata={"help": "Print one JSON object on stdout and nothing else."})
    overwrite: bool = field(default=False, metadata={"help": "Write over a model in the output folder."})
    image_column: str | None = field(default=None, metadata={"help": "The column with the images."})
    label_column: str | None = field(default=None, metadata={"help": "The column with the labels."})
    revision: str | None = field(default=None, metadata={"help": "Revision of the model on the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code that a model brings along."})


def train(context: typer.Context) -> None:
    """
    Erase classes with ESC-T, and set every argument of the training (`hf-esc train --help` lists them).

    Checkpoints and, in the end, the erased model go to `--output_dir`. A run that was cut off goes on with
    `--resume_from_checkpoint True`. Runs in several processes under `torchrun -m hf_esc.cli train` and
    `accelerate launch -m hf_esc.cli train`.

    Example: hf-esc train --model embedded --dataset embedded --forget Trouser --output_dir demo --tau 0.8
    """
    from transformers import HfArgumentParser

    from ..training_args_esc_t import ESCTTrainingArguments

    if not {"--help", "-h"} & set(context.args) and not any(
        word.replace("-", "_").startswith("__output_dir") for word in context.args
    ):
        raise OptionError("Where should the erased model go? Name a folder with `--output_dir`.")
    kinds: Any = (Arguments, ESCTTrainingArguments)
    parser = HfArgumentParser(kinds, prog="hf-esc train", description=train.__doc__)
    try:
        arguments, training = parser.parse_args_into_dataclasses(_joined(context.args))
    except OptionError:
        raise
    except ValueError as error:  # of transformers
        raise OptionError(str(error)) from error
    if not training.threshold:
        raise OptionError("`--threshold False` is an ablation whose mask is not binary, and is not saved: use Python.")
    output = Path(training.output_dir)
    resume = {"True": True, "true": True, "False": None, "false": None}.get(
        training.resume_from_checkpoint, training.resume_from_checkpoint
    )
    _check_output(output, resume=resume, overwrite=arguments.overwrite)
    clock = Clock()

    from ..data import load_images
    from ..loading import load_classifier, load_processor
    from ..trainer_esc_t import ESCTTrainer
    from .progress import progress_on_stderr

    original = load_classifier(
        arguments.model,
        device=training.device,
        revision=arguments.revision or "main",
        trust_remote_code=arguments.trust_remote_code,
    )
    data = load_images(arguments.dataset, image_column=arguments.image_column, label_column=arguments.label_column)
    labels = data.resolve(arguments.forget, original.config)
    processor = load_processor(original)
    clock.lap("load")
    with collected_warnings() as incomplete:
        trainer = ESCTTrainer(
            original,
            training,
            data.forget_set(labels),
            _evaluation_sets(data, labels) if training.eval_strategy != "no" else None,
            processing_class=processor,
            image_column=data.image_column,
            label_column=data.label_column,
        )
        progress_on_stderr(trainer, logs=True)
        trainer.train(resume_from_checkpoint=resume)
        clock.lap("erase")
        trainer.save_model()
        clock.lap("save")
    if not trainer.is_world_process_zero():
        return
    erased: Any = trainer.erased_model
    before: Any = None
    after: Any = None
    if arguments.evaluate:
        before, after = before_and_after(
            original, erased, data, labels, processor, 64, training.dataloader_num_workers
        )
        clock.lap("evaluate")
    print_erasure(
        arguments.model,
        arguments.dataset,
        erased.config,
        str(output),
        incomplete=incomplete,
        before=before,
        after=after,
        seconds=clock.seconds,
        as_json=arguments.json,
    )


def _joined(words: list[str]) -> list[str]:
    """The same with all that follows any `--forget` behind one: the parser takes the last one alone."""
    forget: list[str] = []
    others: list[str] = []
    into = others
    for word in words:
        if word.startswith("--forget="):
            forget.append(word.removeprefix("--forget="))
            into = others
        elif word == "--forget":
            into = forget
        elif word.startswith("--"):
            into = others
            others.append(word)
        else:
            into.append(word)
    return [*others, "--forget", *forget] if forget else others


def _evaluation_sets(data, labels: list[int]) -> dict[str, Any]:
    """Test images of the forgotten classes and of the others."""
    if data.test is None:
        raise OptionError(f"{data.name!r} has no test split for `--eval_strategy`.")
    return {"forget": data.select(data.test, labels), "retain": data.select(data.test, labels, keep=False)}


def _check_output(output: Path, *, resume: Any, overwrite: bool) -> None:
    """Say before the work what would go wrong after it."""
    if output.exists() and not output.is_dir():
        raise OutputError(f"The output {output} is a file. Name a folder.")
    if resume is None and any(output.glob("checkpoint-*")):
        raise OutputError(
            f"There are checkpoints in {output}. Go on with them, `--resume_from_checkpoint True`, or remove them."
        )
    if resume is None and not overwrite and (output / "config.json").exists():
        raise OutputError(f"There is a model in {output}. Pass `--overwrite True` to write over it.")
