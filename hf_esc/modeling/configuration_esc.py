"""Configuration of an erased classifier. Travels with checkpoints."""

import copy
import inspect
import shutil
from pathlib import Path
from typing import Any

# Do not import the Auto classes at the top: their import registers this class, which must exist by then.
from transformers.configuration_utils import PretrainedConfig, SubConfigSpec
from transformers.dynamic_module_utils import get_relative_import_files

from .base_code import register_base
from .errors import CheckpointError

# The class that each Auto class loads from the code beside a checkpoint.
AUTO_MAP = {
    "AutoConfig": "configuration_esc.ESCConfig",
    "AutoModelForImageClassification": "modeling_esc.ESCModel",
    "AutoModel": "modeling_esc.ESCFeatureModel",
}


class ESCConfig(PretrainedConfig):
    r"""
    Configuration of an [`ESCModel`]: the wrapped classifier, the places where its head reads features, and the ledger.

    Args:
        base_config (`PretrainedConfig` or `dict`): Configuration of the wrapped classifier.
        sites (`list[dict]`): One entry for each projection: `modules`, the paths of the head's modules that read the
            features; `dim`, the number of feature dimensions d; `axis`, the axis along which they lie; `position`, the
            only position of an image that makes the logits (None: all positions do).
        factors (`list[list[dict]]`): The factors of each projection, in order. `{"type": "low_rank", "rank": k}`
            projects out k directions (ESC), `{"type": "masked"}` is a basis with a binary mask (ESC-T),
            `{"type": "remap", …}` is a gate with a bank.
        erasures (`list[dict]`): The ledger, one record for each erasure, in order:

            - `kind`, `method`, `scenario` (`"classes"`, which is also the default, or `"images"` of classes that
              stay), `p`, `rank`, `per_class`;
            - `labels` (names), `label_ids` (class indices) and `num_images` of the forget set;
            - `unchanged`: the fraction of forget images whose prediction the erasure did not change, in a sample of
              `unchanged_of`; if weights were edited, the fraction that is still classified right;
              `unchanged_by_label`: the same for each label;
            - `right_before`: the fraction that was classified right before; `right_after_by_label`: for each label the
              fraction that the head gives it after the erasure; `complete`: whether that is little enough (None if
              nothing tells); `brought_back`: names of earlier classes that the head says again since this erasure;
            - `projection_sha256`: fingerprint of all projections after the erasure;
            - `base_sha256`: fingerprint of the wrapped classifier; if weights were edited, of the weights before,
              and `weights_sha256` of the weights after;
            - `settings_sha256`, `labels_sha256`, `processor_sha256`: fingerprints of the classifier's settings, of the
              names of its classes and of the image processor at the erasure; `record_sha256`: of the record itself;
            - `base`, `base_revision`: the id and commit of the wrapped classifier on the Hub;
            - `versions`, `date`; for `esc-t` also the settings and the end of the training, see [`ESCTTrainer`].

    Raises:
        CheckpointError: If `base_config` or `sites` is missing, if there is not one list of factors for each site, or
            if an entry has the wrong type.
    """

    model_type = "esc"
    sub_configs_defaults = {"base_config": SubConfigSpec(config_class=PretrainedConfig, model_type="vit")}
    keys_to_ignore_at_inference = ["pooler_output", "hidden_states", "attentions"]
    has_no_defaults_at_init = True

    def __init__(
        self,
        base_config: PretrainedConfig | dict[str, Any] | None = None,
        sites: list[dict[str, Any]] | None = None,
        factors: list[list[dict[str, Any]]] | None = None,
        erasures: list[dict[str, Any]] | None = None,
        **kwargs,
    ):
        if base_config is None or not sites or factors is None or len(factors) != len(sites):
            raise CheckpointError(
                "An ESCConfig needs `base_config`, `sites` and one entry of `factors` for each site; got "
                f"base_config={'missing' if base_config is None else 'given'}, sites={sites!r}, factors={factors!r}. "
                "Make one with `hf_esc.erase`, or fetch the checkpoint anew: without these, nothing would be erased."
            )
        _check_entries(sites, factors, erasures)
        if isinstance(base_config, dict):
            base_config = _build_base_config(base_config)
        self.base_config = base_config
        self.sites = [dict(site) for site in sites]
        self.factors = [[dict(factor) for factor in group] for group in factors]
        self.erasures = list(erasures or [])
        if kwargs.get("id2label") is None and base_config.id2label is not None:
            kwargs.pop("num_labels", None)
            kwargs["id2label"] = {int(number): name for number, name in base_config.id2label.items()}
            kwargs["label2id"] = dict(base_config.label2id or {})
        elif kwargs.get("id2label") is None:
            kwargs["num_labels"] = base_config.num_labels
        if kwargs.get("problem_type") is None:
            kwargs["problem_type"] = base_config.problem_type
        if kwargs.get("attn_implementation") is None:
            kwargs["attn_implementation"] = base_config._attn_implementation
        super().__init__(**kwargs)


def is_erased(model: Any) -> bool:
    """
    Whether a model, or the model of a configuration, has a projection in front of its head.

    The model type decides, not the class: code that travels with a checkpoint has an `ESCModel` of its own.
    """
    return getattr(getattr(model, "config", model), "model_type", None) == ESCConfig.model_type


def _check_entries(sites: Any, factors: Any, erasures: Any) -> None:
    """Raise a [`CheckpointError`] unless sites, factors and records have the right types."""

    def is_site(site: Any) -> bool:
        return (
            isinstance(site, dict)
            and bool(site.get("modules"))
            and all(isinstance(path, str) and path for path in site["modules"])
            and type(site.get("dim")) is int
            and type(site.get("axis")) is int
            and (site.get("position") is None or type(site["position"]) is int)
        )

    def dicts(values: Any) -> bool:
        return isinstance(values, list | tuple) and all(isinstance(value, dict) for value in values)

    for name, values, right in (
        ("sites", sites, isinstance(sites, list | tuple) and all(map(is_site, sites))),
        ("factors", factors, all(map(dicts, factors))),
        ("erasures", erasures, erasures is None or dicts(erasures)),
    ):
        if not right:
            raise CheckpointError(
                f"The configuration has {name} that are none: {values!r}. Fetch the checkpoint anew, or erase the "
                "original again."
            )


def _build_base_config(values: dict[str, Any]) -> PretrainedConfig:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    register_base()
    model_type = str(values.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        raise CheckpointError(
            f"The erased model wraps a {model_type!r}, which this version of transformers does not know. Update "
            "transformers, or import the package that defines it first."
        )
    # Use `from_dict`, not the constructor: timm_wrapper reads its number of labels there.
    config = CONFIG_MAPPING[model_type].from_dict(dict(values))
    config.architectures = values.get("architectures")  # several model classes can share a configuration class
    return config


def build_base(config: PretrainedConfig) -> Any:
    """The classifier of a configuration, with new weights."""
    import transformers

    # Several classes can share a configuration (deit, levit, perceiver). The architecture's name tells them apart.
    for name in config.architectures or []:
        model_class = getattr(transformers, name, None)
        if model_class is not None:
            return model_class._from_config(config)
    return transformers.AutoModelForImageClassification.from_config(config)


def made_again(model: Any, base_config: PretrainedConfig) -> Any:
    """The classifier, without its weights, that is made when a checkpoint of `model` is loaded."""
    import torch

    own_code = not any(type(part).__module__.startswith("transformers.") for part in (model, model.config))
    build = type(model)._from_config if own_code else build_base  # `copy_code` registers code of its own
    try:
        with torch.device("meta"):
            return build(copy.deepcopy(base_config))
    except RuntimeError:  # a constructor that looks at values
        with torch.random.fork_rng():
            return build(copy.deepcopy(base_config))


def copy_code(folder: Path, base: Any) -> None:
    """Copy the code of the model beside the weights, and the base's code if transformers lacks it."""
    here = Path(__file__).with_name("modeling_esc.py")
    for file in {str(here), *get_relative_import_files(here)}:
        shutil.copyfile(file, folder / Path(file).name)
    if type(base).__module__.startswith("transformers."):
        return
    classes = {"AutoConfig": type(base.config), "AutoModelForImageClassification": type(base)}
    imports = []
    for cls in classes.values():
        source = Path(inspect.getfile(cls))
        for file in {str(source), *get_relative_import_files(source)}:
            shutil.copyfile(file, folder / Path(file).name)
        imports.append(f"from .{source.stem} import {cls.__name__}")
    config_name, model_name = (cls.__name__ for cls in classes.values())
    (folder / "base_code.py").write_text(
        '"""Code that the wrapped classifier needs beyond transformers. Written by hf_esc."""\n\n'
        "from transformers import AutoConfig, AutoModelForImageClassification\n"
        "from transformers.models.auto.configuration_auto import CONFIG_MAPPING\n\n"
        + "\n".join(imports)
        + "\n\n\ndef register_base() -> None:\n"
        '    """Register the base with the Auto classes."""\n'
        f"    if {config_name}.model_type not in CONFIG_MAPPING:\n"
        f"        AutoConfig.register({config_name}.model_type, {config_name})\n"
        f"        AutoModelForImageClassification.register({config_name}, {model_name})\n"
    )
