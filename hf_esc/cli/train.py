"""`hf-esc train`: a method that is trained, with every argument of the training."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from ..errors import OptionError, OutputError
from ..methods import METHODS, Method
from ..saving import check_place, claimed, reported, restore_into
from .job import Clock, collected_warnings
from .measure import before_and_after, forgotten_earlier
from .methods import listed, refuse_foreign
from .report import end, note_brought_back, print_erasure
from .request import Wish, read_rows, retain_set
from .words import value_of

_TRAINED = [method for method in METHODS.values() if method.trained]


@dataclass
class Arguments:
    """What to erase from what, and how to report it."""

    model: str = field(metadata={"help": "A folder, an id on the Hub, or `embedded`."})
    dataset: str = field(metadata={"help": "An id on the Hub, a folder of parquet files or of images, or `embedded`."})
    method: str = field(default="esc-t", metadata={"help": f"How: {listed(_TRAINED)}."})
    forget: list[str] | None = field(
        default=None, metadata={"help": "Classes to forget, by name or number, several with spaces or commas."}
    )
    forget_fraction: float | None = field(
        default=None, metadata={"help": "Instead of classes: a fraction of the training images, drawn at random."}
    )
    forget_seed: int | None = field(default=None, metadata={"help": "Seed of that draw; 0 if unset."})
    forget_indices: str | None = field(
        default=None, metadata={"help": "Instead of classes: rows of the training split, with commas or in a file."}
    )
    retain: str | None = field(
        default=None,
        metadata={
            "help": "Images to keep, with labels, for methods that look at any; those of the data set that are not "
            "forgotten if unset."
        },
    )
    evaluate: bool = field(
        default=True, metadata={"help": "Accuracies before and after: measure them, or not (no_evaluate)."}
    )
    json: bool = field(default=False, metadata={"help": "Print one JSON object on stdout and nothing else."})
    allow_incomplete: bool = field(
        default=False, metadata={"help": "Do not fail (exit code 3) if what was to be forgotten is not gone."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Write over a model in the output folder."})
    dataset_config: str | None = field(
        default=None, metadata={"help": "The configuration of the data set, if it has several."}
    )
    image_column: str | None = field(default=None, metadata={"help": "The column with the images."})
    label_column: str | None = field(default=None, metadata={"help": "The column with the labels."})
    revision: str | None = field(default=None, metadata={"help": "Revision of the model on the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code that a model brings along."})


def train(context: typer.Context) -> None:
    """
    Erase with a method that is trained, and set every argument of the training (`hf-esc train --help` lists them).

    ESC-T by default; `hf-esc train --method NAME --help` lists the arguments of another. Checkpoints and, in the end,
    the erased model go to `--output_dir`. A run that was cut off goes on with `--resume_from_checkpoint True`. Runs in
    several processes under `torchrun -m hf_esc.cli train` and `accelerate launch -m hf_esc.cli train`.

    Example: hf-esc train --model embedded --dataset embedded --forget Trouser --output_dir demo --tau 0.8
    """
    words = _joined(context.args)
    named = value_of("method", words)
    method = METHODS.get("esc-t" if named is None else named)
    if method is None or not method.trained:
        raise OptionError(f"`--method {named}` is none that is trained. There are: {listed(_TRAINED)}.")
    if not {"--help", "-h"} & set(words) and value_of("output_dir", words) is None:
        raise OptionError("Where should the erased model go? Name a folder with `--output_dir`.")
    from .training import parsed

    kinds: Any = (Arguments, method.load_arguments())
    arguments, training = parsed(kinds, words, method=method.name, prog="hf-esc train", description=train.__doc__)
    rows = read_rows(arguments.forget_indices)
    wish = Wish(arguments.forget, arguments.forget_fraction, arguments.forget_seed, rows).needed()
    refuse_foreign(method, {"retain": arguments.retain})
    if not getattr(training, "threshold", True):
        raise OptionError("`--threshold False` is an ablation whose mask is not binary, and is not saved: use Python.")
    if training.load_best_model_at_end:
        raise OptionError(
            "`--load_best_model_at_end` would choose the checkpoint on the test images that its accuracies are then "
            "reported on. Leave it out, or use Python with images that are held out for it."
        )
    output = Path(training.output_dir)
    resume = {"True": True, "true": True, "False": None, "false": None}.get(
        training.resume_from_checkpoint, training.resume_from_checkpoint
    )
    check_place(output)
    first = training.process_index == 0
    with claimed(output) if first else nullcontext():  # by one process for all
        if first:
            restore_into(output)
        _check_output(output, resume=resume, overwrite=arguments.overwrite)
        _train(method, arguments, training, wish, resume)


def _train(method: Method, arguments: Any, training: Any, wish: Wish, resume: Any) -> None:
    """Train, save and measure, as [`train`] has understood its words."""
    clock, output = Clock(), Path(training.output_dir)

    from ..data.image_data import load_images
    from ..loading import load_classifier, load_config, load_processor
    from .training import make_trainer

    source = {"revision": arguments.revision or "main", "trust_remote_code": arguments.trust_remote_code}
    config = load_config(arguments.model, **source)
    data = load_images(
        arguments.dataset,
        image_column=arguments.image_column,
        label_column=arguments.label_column,
        dataset_config=arguments.dataset_config,
    )
    found = wish.found_early(data, config)
    original = load_classifier(arguments.model, device=training.device, **source)
    request = found or wish.found_in(data, original.config)
    kept = retain_set(method, arguments.retain, request, original.config)
    processor = load_processor(original)
    clock.lap("load")
    with collected_warnings() as incomplete:
        trainer = make_trainer(method, original, training, request, kept, processor, logs=True)
        # The Trainer of transformers writes checkpoints.
        with reported(output, left="The last checkpoint may not be whole."):
            trainer.train(resume_from_checkpoint=resume)
            clock.lap("erase")
            trainer.save_model()
            clock.lap("save")
    if not trainer.is_world_process_zero():
        return
    erased = trainer.result
    before: Any = None
    after: Any = None
    earlier: Any = None
    if arguments.evaluate:
        measured = (original, erased, request, processor, 64, training.dataloader_num_workers)
        before, after = before_and_after(*measured)
        earlier = forgotten_earlier(*measured)
        note_brought_back(output, erased.config, earlier)
        clock.lap("evaluate")
    complete = print_erasure(
        arguments.model,
        arguments.dataset,
        erased.config,
        str(output),
        incomplete=incomplete,
        before=before,
        after=after,
        earlier=earlier,
        seconds=clock.seconds,
        as_json=arguments.json,
    )
    end(complete, allow_incomplete=arguments.allow_incomplete)


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


def _check_output(output: Path, *, resume: Any, overwrite: bool) -> None:
    """Say before the work what would go wrong after it."""
    # One that was not written to its end is none: nothing can go on from it, and the new run writes over it.
    if resume is None and any(output.glob("checkpoint-*/trainer_state.json")):
        raise OutputError(
            f"There are checkpoints in {output}. Go on with them, `--resume_from_checkpoint True`, or remove them."
        )
    if resume is None and not overwrite and (output / "config.json").exists():
        raise OutputError(f"There is a model in {output}. Pass `--overwrite True` to write over it.")
