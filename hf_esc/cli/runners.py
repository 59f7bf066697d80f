"""How `hf-esc erase` runs each method. Heavy; the command imports it when it runs."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import OptionError
from ..methods import Method
from .request import Request

# What every function of a method may take, and the command gives: the rest is its own.
_COMMON = ("scenario", "processing_class", "batch_size", "num_workers", "image_column", "label_column", "sites")
# Arguments of a training that another option or command is for.
_ELSEWHERE = {
    "output_dir": "`--output` is the folder of the erased model, and `hf-esc train` keeps checkpoints",
    "resume_from_checkpoint": "`hf-esc train` keeps checkpoints and goes on from them",
    "load_best_model_at_end": "there are no checkpoints to choose from",
    "push_to_hub": "`hf-esc push` pushes the erased model",
}


def runner(
    method: Method,
    settings: Mapping[str, Any],
    further: Sequence[str],
    *,
    others: Sequence[str],
    scratch: Path | None,
    batch_size: int | None,
    num_workers: int,
    device: str | None,
) -> Callable[[Any, Request, Any, Any], Any]:
    """
    A method with its settings: from a classifier, a request, a retain set and the image processor to the result.

    Args:
        method ([`Method`]): The method.
        settings (`Mapping[str, Any]`): By the names of their options.
        further (`Sequence[str]`): The words of the command line that are settings of the method.
        others (`Sequence[str]`): The command's own options, which a wrong word could have meant.
        scratch (`Path`, *optional*): A folder for what a training writes.
        batch_size, num_workers, device: Of the command.

    Raises:
        OptionError: If a setting is not there or does not fit.
    """
    if not method.trained:
        loading = {"batch_size": batch_size, "num_workers": num_workers}
        return _function(method, settings, further, others, loading)
    from . import training  # and with it the Trainer, which takes a second

    _refuse_elsewhere(training.given(further))
    training.check_device(device)
    if settings["epochs"] is not None and "num_train_epochs" in training.given(further):
        raise OptionError("--epochs and --num-train-epochs are the same. Leave one out.")
    kind = method.load_arguments()
    # Of what is not trained on: the images of one pass for features, or of an evaluation.
    batches = "feature_batch_size" if hasattr(kind, "feature_batch_size") else "per_device_eval_batch_size"
    ours = {
        "output_dir": scratch,
        "save_strategy": "no",
        "use_cpu": device is not None and device.split(":")[0] == "cpu",
        "dataloader_num_workers": num_workers,
        batches: batch_size or 32,
        "num_train_epochs": settings["epochs"],
        "seed": settings["seed"],
        **{argument: settings[option] for option, argument in method.options.items()},
    }
    words = [*training.as_words(ours), *further]
    [arguments] = training.parsed([kind], words, method=method.name, others=others)
    return partial(_trained, method, arguments)


def _refuse_elsewhere(given: set[str]) -> None:
    if refused := given & set(_ELSEWHERE):
        name = min(refused)
        raise OptionError(f"--{name.replace('_', '-')} has no place here: {_ELSEWHERE[name]}.")


def _function(
    method: Method, settings: Mapping[str, Any], further: Sequence[str], others: Sequence[str], loading: dict[str, Any]
) -> Callable[[Any, Request, Any, Any], Any]:
    """A method that is a function, with what was given for its arguments; it has its own defaults."""
    function = method.load()
    given = {argument: settings[option] for option, argument in method.options.items()}
    if method.edits_weights:  # only these take further words
        from . import training

        _refuse_elsewhere(training.given(further))
        kind = training.settings_of(function, without={*_COMMON, *given})
        [found] = training.parsed([kind], further, method=method.name, others=others)
        given |= asdict(found)

    def run(original: Any, request: Request, retain: Any, processor: Any) -> Any:
        common = loading | {
            "scenario": request.scenario,
            "processing_class": processor,
            "image_column": request.data.image_column,
            "label_column": request.data.label_column,
        }
        taken = inspect.signature(function).parameters
        values = {name: value for name, value in (common | given).items() if name in taken and value is not None}
        sets = [request.forget_set(), *([retain] if method.uses_retain else [])]
        return function(original, *sets, **values)

    return run


def _trained(method: Method, arguments, original, request: Request, retain, processor):
    from . import training

    trainer = training.make_trainer(method, original, arguments, request, retain, processor, logs=False)
    trainer.train()
    return trainer.result
