"""How `hf-esc erase` runs each method. Heavy; the command imports it when it runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from ..erasure.esc import erase
from ..erasure.remap import BANK_SIZE, remap
from ..errors import OptionError
from .methods import Method
from .request import Request


def runner(
    method: Method,
    settings: Mapping[str, Any],
    further: Sequence[str],
    *,
    others: Sequence[str],
    scratch: str,
    batch_size: int | None,
    num_workers: int,
    device: str | None,
) -> Callable[[Any, Request, Any, Any], Any]:
    """
    A method with its settings: from a classifier, a request, a retain set and the image processor to the result.

    Args:
        method (`Method`): The method.
        settings (`Mapping[str, Any]`): By the names of their options.
        further (`Sequence[str]`): The words of the command line that are for the training.
        others (`Sequence[str]`): The command's own options, which a wrong word could have meant.
        scratch (`str`): A folder for what the training writes.
        batch_size, num_workers, device: Of the command.

    Raises:
        OptionError: If a setting is not there or does not fit.
    """
    if method is Method.ESC:
        return partial(_closed_form, settings, batch_size or 32, num_workers)
    if method is Method.REMAP:
        return partial(_remap, settings, batch_size or 32, num_workers)
    from . import training  # and with it the Trainer, which takes a second

    if refused := training.given(further) & set(_ELSEWHERE):
        name = min(refused)
        raise OptionError(f"--{name.replace('_', '-')} has no place here: {_ELSEWHERE[name]}.")
    if method is Method.FISHER:
        [given] = training.parsed([training.FisherArguments], further, method=method.value, others=others)
        return partial(_fisher, asdict(given), settings["seed"], batch_size)
    training.check_device(device)
    if settings["epochs"] is not None and "num_train_epochs" in training.given(further):
        raise OptionError("--epochs and --num-train-epochs are the same. Leave one out.")
    ours = {
        "output_dir": scratch,
        "save_strategy": "no",
        "use_cpu": device is not None and device.split(":")[0] == "cpu",
        "dataloader_num_workers": num_workers,
        "feature_batch_size" if method is Method.ESC_T else "per_device_eval_batch_size": batch_size or 32,
        "tau": settings["tau"],
        "num_train_epochs": settings["epochs"],
        "seed": settings["seed"],
    }
    kinds, words = [training.arguments_of(method.value)], [*training.as_words(ours), *further]
    [arguments] = training.parsed(kinds, words, method=method.value, others=others)
    return partial(_trained, method, arguments)


# Arguments of a training that another option or command is for.
_ELSEWHERE = {
    "output_dir": "`--output` is the folder of the erased model, and `hf-esc train` keeps checkpoints",
    "resume_from_checkpoint": "`hf-esc train` keeps checkpoints and goes on from them",
    "load_best_model_at_end": "there are no checkpoints to choose from",
    "push_to_hub": "`hf-esc push` pushes the erased model",
}


def _columns(request: Request) -> dict[str, Any]:
    return {"image_column": request.data.image_column, "label_column": request.data.label_column}


def _closed_form(settings, batch_size, num_workers, original, request: Request, retain, processor):
    return erase(
        original,
        request.forget_set(),
        scenario="classes" if request.rows is None else "images",
        p=1.5 if settings["p"] is None else settings["p"],
        rank=settings["rank"],
        per_class=bool(settings["per-class"]),
        processor=processor,
        batch_size=batch_size,
        num_workers=num_workers,
        **_columns(request),
    )


def _remap(settings, batch_size, num_workers, original, request: Request, retain, processor):
    return remap(
        original,
        request.forget_set(),
        retain,
        bank_size=BANK_SIZE if settings["bank-size"] is None else settings["bank-size"],
        threshold=settings["gate-threshold"],
        seed=settings["seed"] or 0,
        processor=processor,
        batch_size=batch_size,
        num_workers=num_workers,
        **_columns(request),
    )


def _fisher(given, seed, batch_size, original, request: Request, retain, processor):
    from ..unlearning import fisher_forgetting

    ours = {"seed": seed, "batch_size": batch_size}
    return fisher_forgetting(
        original,
        request.forget_set(),
        retain,
        **given,
        **{name: value for name, value in ours.items() if value is not None},
        scenario=request.scenario,
        processing_class=processor,
        **_columns(request),
    )


def _trained(method: Method, arguments, original, request: Request, retain, processor):
    from . import training

    trainer = training.make_trainer(method.value, original, arguments, request, retain, processor, logs=False)
    trainer.train()
    return trainer.result
