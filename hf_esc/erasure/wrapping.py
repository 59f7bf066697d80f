"""Wrap a copy of a classifier in an ESCModel, and find its head. The given model is not touched."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, TypeVar

from transformers import PreTrainedModel

from ..data.batches import Batch
from ..data.labels import check_classes, numbered_names
from ..data.model_batches import NOTHING_TO_FORGET, check_model, check_weights
from ..errors import ForgetSetError, HfEscError, ModelError, OptionError
from ..features.sites import SiteGroup, find_sites, graph_tensors
from ..features.stream import MODEL_ERRORS, model_inputs, refused_batch
from ..modeling.configuration_esc import ESCConfig, is_erased
from ..modeling.fingerprints import head_sha256
from ..modeling.modeling_esc import ESCModel
from ..modeling.projection import Projection

Model = TypeVar("Model", bound=PreTrainedModel)


def wrapped_copy(
    model: PreTrainedModel, batches: Iterable[Batch], sites: Sequence[SiteGroup] | None = None
) -> tuple[ESCModel, Iterable[Batch]]:
    """
    A copy of `model` as an [`ESCModel`] in eval mode, and all of `batches`.

    Args:
        model (`PreTrainedModel`): Any image classifier, or an [`ESCModel`], which keeps its erasures. It is not
            touched.
        batches (`Iterable[dict[str, torch.Tensor]]`): Images; the first batch is what the head is found with.
        sites (`Sequence[SiteGroup]`, *optional*): Where the head reads features, where that is known.

    Raises:
        ForgetSetError: If there is no batch, or the model cannot take it.
        ModelError: If the model is offloaded, or is the inside of an erased one.
        SiteError: If the model has no classification head that reads features.
    """
    if is_erased(model):
        if sites is not None:
            raise OptionError("`sites` are those of the ESCModel already; leave them out.")
        return copy_of_model(model).eval(), batches
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise ForgetSetError(NOTHING_TO_FORGET)
    base = copy_of_model(model)
    groups = list(sites) if sites is not None else _sites_of(base, first)
    return wrap(base, [group.to_dict() for group in groups]).eval(), chain([first], batches)


def wrap(model: PreTrainedModel, sites: Sequence[dict[str, Any]]) -> ESCModel:
    """An [`ESCModel`] around `model` that has no factors and so erases nothing yet. It cannot be saved."""
    base_config = copy.deepcopy(model.config)
    base_config.architectures = [type(model).__name__]
    base_config._name_or_path = ""  # do not leak a local path; the ledger holds the id on the Hub
    # One ledger holds earlier edits of the weights and erasures in front of the head.
    ledger = base_config.__dict__.pop("erasures", None)
    config = ESCConfig(base_config, sites=list(sites), factors=[[] for _ in sites], erasures=ledger)
    for name in ("pretrained_cfg", "image_processor_type"):
        # The timm wrapper keeps its image processor in the model's config, where AutoImageProcessor looks for it.
        if hasattr(base_config, name):
            setattr(config, name, copy.deepcopy(getattr(base_config, name)))
    if base_config.model_type == "timm_wrapper":
        config.image_processor_type = "TimmWrapperImageProcessor"
        config.architecture = base_config.architecture
    esc = ESCModel(config, model=model)
    config.dtype = next(model.parameters()).dtype
    return esc.train(model.training)


def copy_of_model(model: Model) -> Model:
    """
    A deep copy of a model, also of one that caches tensors with a graph, which Python cannot copy.

    Raises:
        ModelError: If the model is no classifier of transformers, is offloaded or quantised, has adapters, is the
            inside of an erased one, or gives an image no one class.
        LabelError: If the model does not number its classes from 0 on.
    """
    check_model(model)
    if any(tensor.is_meta for tensor in chain(model.parameters(), model.buffers())):
        raise ModelError("The model, or a part of it, is offloaded. Load it whole on one device to erase from it.")
    if not is_erased(model):
        for module in model.modules():
            for hook in module._forward_pre_hooks.values():
                if isinstance(getattr(hook, "__self__", None), Projection):
                    raise ModelError(
                        "This is the inside of an erased model, and its erasure would be lost on saving. Pass the "
                        "ESCModel."
                    )
    elif model.config.erasures and model.config.erasures[-1].get("untrained_head_sha256") == head_sha256(model):
        raise ModelError("The head is new and was never trained, so there is nothing to erase from. Train it first.")
    check_classes(model.config)
    check_weights(model)
    copied = copy.deepcopy(model, {id(tensor): tensor.detach().clone() for _, _, tensor in graph_tensors(model)})
    if copied.config.id2label:
        copied.config.id2label = numbered_names(copied.config)
    return copied


def _sites_of(model: PreTrainedModel, batch: Batch) -> list[SiteGroup]:
    inputs = model_inputs(model, batch)
    try:
        return find_sites(model, inputs)
    except HfEscError:
        raise
    except MODEL_ERRORS as error:
        raise refused_batch(model, 0, inputs, error) from error
