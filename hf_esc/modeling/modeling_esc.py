"""The erased classifier: any image classifier with a projection in front of its head. Travels with checkpoints."""

# Shapes: B images, d_g feature dimensions of site group g, d their sum, C classes.

import copy
import importlib
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from .configuration_esc import AUTO_MAP, ESCConfig, build_base, copy_code, is_erased, made_again
from .errors import CheckpointError, SiteError
from .factors import Factor
from .fingerprints import head_names, head_sha256, projections_sha256, structure, weights_sha256
from .outputs import ESCOutput, forward_inputs, logits_of, pooled
from .projection import Projection, build_factor, disabled

# What a record says of the head at the erasure, and of the classifier that it made with it.
_OF_THIS_HEAD = {"settings_sha256", "labels_sha256", "record_sha256", "label_ids", "untrained_head_sha256"}


class ESCModel(PreTrainedModel):
    r"""
    An image classifier \(f = g \circ h\) whose features pass a projection on their way to the head:
    \(f'(x) = g(P h(x))\).

    \(P\) is \(I - U U^\top\) for ESC, \(U_R U_R^\top\) for ESC-T, or a product of such factors (Eq. 2 and 6 of
    [ESC](https://huggingface.co/papers/2504.02199)).

    The backbone is the original's, bit for bit. So whoever holds the file can take the projection off, for example
    with [`ESCModel.disable_projection`]. Make an `ESCModel` with [`hf_esc.erase`]. Load it with `from_pretrained` of
    this class or of `AutoModelForImageClassification`.

    Args:
        config ([`ESCConfig`]): Its configuration.
        model (`PreTrainedModel`, *optional*): The classifier to wrap. It is taken over, not copied. By default, a
            classifier is built from `config.base_config`.

    Raises:
        CheckpointError: If `config.sites` does not fit the classifier.
    """

    config_class = ESCConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    _keep_in_fp32_modules_strict = ["projections"]
    # The base model decides what it supports. A wrapper that says no would refuse on its behalf.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch, and Trainer divides it when it accumulates
    projections: Sequence[Projection]

    def __init__(self, config: ESCConfig, model: PreTrainedModel | None = None):
        super().__init__(config)
        self.model = build_base(config.base_config) if model is None else model
        if model is not None:
            # `post_init` draws new weights for modules without this mark: a head that a user put in, adapters, layers
            # that a conversion made. What was given is trained, whoever made it.
            for module in model.modules():
                module._is_hf_initialized = True  # type: ignore[assignment]
        self.main_input_name = self.model.main_input_name
        self._no_split_modules = self.model._no_split_modules
        self.loss_type = "ForImageClassification"  # transformers guesses from the class name otherwise
        self.image_processor: Any = None
        self.projections = nn.ModuleList(  # type: ignore[assignment]
            Projection(site["dim"], [build_factor(site["dim"], factor) for factor in factors], site["axis"])
            for site, factors in zip(config.sites, config.factors, strict=True)
        )
        for site, projection in zip(config.sites, self.projections, strict=True):
            for path in site["modules"]:
                projection.stand_before(self._head(path, site))
        self.post_init()

    def _head(self, path: str, site: dict[str, Any]) -> nn.Module:
        """The module at `path`. Raise a [`CheckpointError`] unless it maps `dim` features to the logits."""
        try:
            module = self.model.get_submodule(path)
        except AttributeError:
            raise CheckpointError(
                f"{type(self.model).__name__} has no module {path!r} to put a projection before."
            ) from None
        shapes = [tuple(weight.shape[:2]) for weight in module.parameters(recurse=False) if weight.ndim > 1]
        if (self.config.num_labels, site["dim"]) not in shapes:
            found = " or ".join(f"{shape[1:]} to {shape[:1]}" for shape in shapes) or "nothing by a weight of its own"
            raise CheckpointError(
                f"{path!r} of {type(self.model).__name__} maps {found}, and the head should map "
                f"{site['dim']} features to {self.config.num_labels} labels. A projection there would not erase."
            )
        return module

    @property
    def base_model(self) -> nn.Module:
        """The wrapped classifier."""
        return self.model

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def _init_weights(self, module: nn.Module) -> None:
        # The wrapped classifier initialises its own modules. A projection stays NaN until a checkpoint fills it.
        if isinstance(module, Factor):
            module.unfill()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> ESCOutput | tuple:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(B, c, H, W)`): Images from the image processor.
            labels (`torch.LongTensor` of shape `(B,)`, *optional*): Class indices, for the loss. The projection never
                looks at them.
            return_dict (`bool`, *optional*): `False` returns a plain tuple.
            kwargs: Passed on to the wrapped classifier, such as `interpolate_pos_encoding` or another main input.

        Returns:
            [`ESCOutput`], or a tuple of its values

        Raises:
            SiteError: If a head is gone or did not run, so that the answer would not be erased.
        """
        inputs = forward_inputs(self.config, self.model.forward, pixel_values, kwargs)
        for projection, site in zip(self.projections, self.config.sites, strict=True):
            for path in site["modules"]:
                try:
                    projection.stand_before(self.model.get_submodule(path))
                except AttributeError:
                    raise SiteError(f"The head {path!r} of the {type(self.model).__name__} inside is gone.") from None
            projection.thread.features = None
        output = self.model(**inputs)
        captured: list[Any] = [projection.thread.features for projection in self.projections]
        for projection in self.projections:
            projection.thread.features = None
        if any(features is None for features in captured):
            raise SiteError(
                f"The projection did not run: {[site['modules'] for site in self.config.sites]} of the "
                f"{type(self.model).__name__} inside did not run. The answer would not be erased."
            )
        logits = logits_of(output, self.config.num_labels)
        features = [
            pooled(seen, site["axis"], site.get("position"))
            for seen, site in zip(captured, self.config.sites, strict=True)
        ]
        result = ESCOutput(
            loss=self.loss_function(labels, logits, self.config) if labels is not None else None,
            logits=logits,
            pooler_output=features[0] if len(features) == 1 else torch.cat(features, dim=-1),
            hidden_states=getattr(output, "hidden_states", None),
            attentions=getattr(output, "attentions", None),
        )
        return result if return_dict is not False else result.to_tuple()

    def features(self, pixel_values: Tensor | None = None, **inputs) -> Tensor:
        """The projected features `(B, d)`, which the head reads. Those of several heads stand side by side."""
        return self(pixel_values, **inputs).pooler_output

    @contextmanager
    def disable_projection(self) -> Iterator[None]:
        """
        Within the context, the model is the original again, bit for bit. Other threads and other asyncio tasks still
        get erased answers; a generator that is suspended inside shares the context with its caller. In a model that
        `torch.compile` compiled, the thread decides, and all its tasks share that.

        Whoever holds the file can do this.
        """
        with disabled(self.projections):
            yield

    def set_factors(self, factors: Sequence[Sequence[Factor]], record: dict[str, Any], *, check: bool = True) -> None:
        """
        Set the factors of each projection, and write the erasure into the ledger.

        Args:
            factors (`Sequence[Sequence]`): All factors of each projection, in order.
            record (`dict`): The new record for the ledger. Fingerprints of the projections and of the wrapped
                classifier are added to it, unless it already has the latter as `base_sha256`.
            check (`bool`, defaults to `True`): Whether to check the factors. Pass `False` only for a model that is
                never saved.

        Raises:
            CheckpointError: If a factor is not valid. The model is left as it was.
        """
        device = next(self.model.parameters()).device
        fresh = [
            Projection(projection.dim, group, projection.axis).to(device)
            for projection, group in zip(self.projections, factors, strict=True)
        ]
        if check:
            for projection in fresh:
                projection.check()
        for projection, other in zip(self.projections, fresh, strict=True):
            projection.factors = other.factors
        self.config.factors = [[factor.config() for factor in group] for group in factors]
        fingerprints = {
            "projection_sha256": projections_sha256(self.projections, self.config.sites),
            "base_sha256": record.get("base_sha256") or weights_sha256(self.model),
        }
        # Everything that stands in front of the head is of this kind, even if the record does not say so.
        self.config.erasures = [*self.config.erasures, {"kind": "in_front", **record, **fingerprints}]

    def check_projections(self) -> None:
        """Raise a [`CheckpointError`] unless every projection is valid, erases something, and is the ledger's."""
        for index, projection in enumerate(self.projections):
            projection.check(f"The projection {index} ({projection.dim} features)")
        recorded = self.config.erasures[-1].get("projection_sha256") if self.config.erasures else None
        if recorded is None:
            raise CheckpointError(
                "The ledger of erasures in the configuration has no fingerprint of the projection, so nothing tells "
                "whether it is the one that was made. Fetch the checkpoint anew, or erase the original again."
            )
        if projections_sha256(self.projections, self.config.sites) != recorded:
            raise CheckpointError(
                f"The projection was altered since the erasure: its fingerprint is not {recorded[:12]}…, which the "
                "ledger says. Fetch the checkpoint anew, or erase the original again."
            )

    def replace_head(self, id2label: dict[int, str]) -> "ESCModel":
        """
        A copy with an untrained head for other classes, which reads the same projected features.

        What was erased stays projected out while the new head is trained. The ledger keeps its records as those of an
        earlier head: their class names stay, and their `label_ids` become `earlier_label_ids`.

        Args:
            id2label (`dict[int, str]`): The new classes, by number from 0 on.

        Raises:
            CheckpointError: If the classes are not numbered from 0 on, or their number shapes more than the weights of
                the head.
        """
        names = {int(number): name for number, name in id2label.items()}
        if not names or sorted(names) != list(range(len(names))):
            raise CheckpointError(f"The classes of a new head are numbered from 0 on, and these are {id2label}.")
        config: Any = copy.deepcopy(self.config)
        config.base_config.id2label = config.id2label = dict(sorted(names.items()))
        config.base_config.label2id = config.label2id = {name: number for number, name in names.items()}
        base = build_base(config.base_config)
        head = head_names(base, config.sites)
        kept = {name: tensor for name, tensor in self.model.state_dict().items() if name not in head}
        try:
            left = base.load_state_dict(kept, strict=False)
            other = sorted({*left.missing_keys, *left.unexpected_keys} - head)
        except RuntimeError as error:  # of shapes that differ
            other = [str(error)]
        if other:
            raise CheckpointError(f"More than the head would be new for {len(names)} classes: {other[:4]}.")
        config.erasures = [
            {
                **{name: value for name, value in record.items() if name not in _OF_THIS_HEAD},
                "earlier_label_ids": record.get("earlier_label_ids") or record.get("label_ids"),
                "label_ids": None,
            }
            for record in config.erasures
        ]
        fresh = ESCModel(config, model=base.to(self.dtype))
        for own, there in zip(fresh.projections, self.projections, strict=True):
            own.factors = copy.deepcopy(there.factors)
        config.erasures[-1]["untrained_head_sha256"] = head_sha256(fresh)
        fresh.image_processor = self.image_processor
        return fresh.to(self.device).train(self.training)  # type: ignore[arg-type]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """
        Load an erased model. Takes the arguments of `PreTrainedModel.from_pretrained`. With other `id2label` or
        `num_labels` and `ignore_mismatched_sizes=True`, its head is a new one, as by [`ESCModel.replace_head`].

        Raises:
            CheckpointError: If the checkpoint's projection is missing, misshapen, not finite or not valid. Such a
                model would look erased without being so.
        """
        # With `ignore_mismatched_sizes`, transformers lists the shapes that differ. Without it, it raises and does not
        # name them.
        strict = not kwargs.pop("ignore_mismatched_sizes", False)
        wanted = cls._other_labels(pretrained_model_name_or_path, kwargs)
        if wanted and strict:
            raise CheckpointError(
                f"{pretrained_model_name_or_path} has a head for other classes. Pass `ignore_mismatched_sizes=True` "
                "to train a new one on the erased backbone, or leave out `num_labels` and `id2label`."
            )
        model: ESCModel
        info: dict[str, Any]
        model, info = super().from_pretrained(  # type: ignore[misc]
            pretrained_model_name_or_path, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            entries = {(key[0] if isinstance(key, tuple) else key): key for key in info[problem]}
            allowed = problem == "mismatched_keys" and not strict
            if bad := [entries[key] for key in sorted(entries) if not allowed or key.startswith("projections.")]:
                raise CheckpointError(
                    f"{pretrained_model_name_or_path} does not fit its configuration: {problem.replace('_', ' ')} "
                    f"{bad[:4]}. What is missing would be drawn at random, which looks erased, and without its "
                    "projection nothing is erased. Fetch the checkpoint anew, or erase the original again."
                )
        for factor in model.modules():
            if isinstance(factor, Factor):
                factor.restore()
        model.check_projections()
        if wanted:
            model = model.replace_head(wanted).eval()
            info["missing_keys"] = {f"model.{name}" for name in head_names(model.model, model.config.sites)}
        return (model, info) if output_loading_info else model

    @classmethod
    def _other_labels(cls, source: Any, kwargs: dict[str, Any]) -> dict[int, str] | None:
        """Names of more or fewer classes than the checkpoint has, out of `kwargs`. Other names are no new head."""
        hub = {"revision", "token", "cache_dir", "subfolder", "local_files_only"} & kwargs.keys()
        load: Any = partial(cls.config_class.from_pretrained, **{name: kwargs[name] for name in hub})
        if isinstance(kwargs.get("config"), str | Path):
            kwargs["config"] = load(kwargs["config"])
        names, number, config = (kwargs.get(name) for name in ("id2label", "num_labels", "config"))
        if config is not None and config.num_labels != config.base_config.num_labels:
            names = config.id2label  # an Auto class has put them there
        number = number or len(names or ())
        if not number or number == (config or load(source)).base_config.num_labels:
            return None
        if names and len(names) != number:
            raise CheckpointError(f"`num_labels` is {number}, and `id2label` names {len(names)} classes.")
        for name in ("id2label", "num_labels", "config"):
            kwargs.pop(name, None)
        return names or {index: f"LABEL_{index}" for index in range(number)}

    def save_pretrained(self, save_directory, *args, push_to_hub: bool = False, **kwargs) -> None:
        """
        Save weights, configuration, image processor, and the code that loads them without hf_esc.

        Takes the arguments of `PreTrainedModel.save_pretrained`.

        Raises:
            CheckpointError: If a projection is not valid, or the classifier inside is no longer what its configuration
                makes. The checkpoint would not load, or would load to other logits. Nothing is written.
        """
        self.check_projections()
        self._check_structure(kwargs.get("state_dict"))
        self.config.architectures = [type(self).__name__]
        # `register_for_auto_class` would write the entry of one class, and this code serves three Auto classes.
        self.config.auto_map = dict(AUTO_MAP)
        own = inspect.signature(PreTrainedModel.save_pretrained).parameters
        hub = {name: value for name, value in kwargs.items() if name not in own or name == "token"}
        kwargs = {name: value for name, value in kwargs.items() if name in own}
        super().save_pretrained(save_directory, *args, **kwargs)
        copy_code(Path(save_directory), self.model)
        processor = self.image_processor if self.image_processor is not None else self._processor_of_origin()
        if processor is not None:
            processor.save_pretrained(save_directory)
        if push_to_hub:
            self.push_to_hub(hub.pop("repo_id", Path(save_directory).name), **hub)

    def _check_structure(self, state: dict[str, Tensor] | None = None) -> None:
        """
        Raise a [`CheckpointError`] unless what is loaded from a checkpoint computes what the classifier inside does.

        `state` is what is saved, where the caller gives it, as of a model whose parts are on several devices.
        """
        if state is not None:
            state = {name.removeprefix("model."): state[name] for name in state if name.startswith("model.")}
        own = structure(self.model, state)
        made = structure(made_again(self.model, self.config.base_config))
        if other := sorted(path for path in {**own, **made} if own.get(path) != made.get(path)):
            raise CheckpointError(
                f"The {type(self.model).__name__} inside is not what its configuration makes: {', '.join(other[:4])} "
                f"({len(other)} in all). What is loaded from the file would answer otherwise. Merge adapters "
                "(`merge_and_unload()`), write replaced settings into the configuration, and erase again."
            )

    def push_to_hub(self, repo_id: str, **kwargs):  # type: ignore[override]
        """
        Push weights, configuration, image processor, code and card in one commit, with an evaluation if one is given.

        Takes the arguments of `PreTrainedModel.push_to_hub`, and `report`, `redact`, `license` and `language` of
        `hf_esc.hub.push.push`. Without hf_esc installed, there is no card.
        """
        try:
            hub = importlib.import_module("hf_esc.hub.push")
        except ImportError:
            return super().push_to_hub(repo_id, **kwargs)  # type: ignore[arg-type]
        return hub.push(self, repo_id, **kwargs)

    def _processor_of_origin(self) -> Any:
        """The image processor beside the checkpoint that this model was loaded from, or None."""
        try:
            return transformers.AutoImageProcessor.from_pretrained(self.config._name_or_path)
        except (OSError, ValueError, KeyError, ImportError):
            return None


class ESCFeatureModel(ESCModel):
    """An [`ESCModel`] that returns its projected features and no logits. `AutoModel` loads it from a checkpoint."""

    def forward(  # type: ignore[override]
        self, pixel_values: Tensor | None = None, return_dict: bool | None = None, **kwargs
    ) -> ESCOutput | tuple:
        """Return an [`ESCOutput`] with `pooler_output` `(B, d)`, and hidden states and attentions if requested."""
        result: Any = super().forward(pixel_values, **kwargs)
        result = ESCOutput(
            pooler_output=result.pooler_output, hidden_states=result.hidden_states, attentions=result.attentions
        )
        return result if return_dict is not False else result.to_tuple()


def inner_classifier(model: Any) -> Any:
    """The classifier inside an erased model, also if code beside the checkpoint loaded it. Any other model itself."""
    return model.model if is_erased(model) else model


__all__ = ["ESCFeatureModel", "ESCModel", "ESCOutput"]
