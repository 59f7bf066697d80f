"""Tiny, randomly initialised image classifiers: one per class that transformers maps to image classification.

``ZOO`` holds every class the project handles, ``REFUSED`` those it must turn down, ``TIMM`` architectures to be run
through transformers' timm wrapper. Nothing here touches the network or a checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from packaging.version import Version

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NUM_LABELS = 5


@dataclass(frozen=True, eq=False)  # eq=False: hashable by identity although `config` is a dict
class TinyModel:
    """A tiny model of one class, and the inputs it takes."""

    id: str
    model_class: str
    config_class: str
    config: dict
    image_size: tuple[int, int] | int
    main_input: str = "pixel_values"

    def build(self, seed: int = 0) -> PreTrainedModel:
        """Return a fresh model, in eval mode and float32; equal seeds give equal weights."""
        import torch
        import transformers

        if self.model_class.startswith("Dinat"):
            use_natten_stand_in()
        if self.model_class.startswith("TimmWrapper"):
            _skip_without(self.config["architecture"])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = getattr(transformers, self.config_class)(**self.config)
            model = getattr(transformers, self.model_class)(config).float()
            _randomise(model, self.inputs(batch_size=8, seed=seed + 1000))
        return model

    def inputs(self, batch_size: int = 3, seed: int = 1) -> dict[str, torch.Tensor]:
        """Return a seeded batch, to be passed as ``model(**inputs)``."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        if self.model_class.startswith("ImageGPT"):
            # Pixels are colour clusters; the vocabulary's last token is the start of sequence. Each image has its own
            # range of colours, or the average over tokens would be about the same for all.
            colours = self.config["vocab_size"] - 1
            first = torch.randint(colours, (batch_size, 1), generator=generator)
            offset = torch.randint(colours // 4, (batch_size, self.config["n_positions"]), generator=generator)
            return {"input_ids": (first + offset) % colours}
        images = _images(batch_size, self.image_size, generator)
        if self.model_class.startswith("Siglip2"):
            return _siglip2_inputs(images, self.config["vision_config"]["patch_size"])
        if self.model_class.startswith("ShieldGemma2"):
            prompt = torch.randint(3, 50, (batch_size, 6), generator=generator)
            soft_tokens = torch.full(
                (batch_size, self.config["mm_tokens_per_image"]), self.config["image_token_index"]
            )
            input_ids = torch.cat([soft_tokens, prompt], dim=1)
            return {"input_ids": input_ids, "pixel_values": images, "attention_mask": torch.ones_like(input_ids)}
        return {self.main_input: images}


def _images(batch_size: int, image_size: tuple[int, int] | int, generator: torch.Generator) -> torch.Tensor:
    """Return images with structure at a coarse and a fine scale.

    White noise alone would look the same to any model that averages over positions.
    """
    import torch

    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    coarse = torch.randn(batch_size, 3, 2, 2, generator=generator)
    coarse = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return coarse + 0.5 * torch.randn(batch_size, 3, height, width, generator=generator)


def _siglip2_inputs(images: torch.Tensor, patch: int) -> dict[str, torch.Tensor]:
    """Cut images into SigLIP 2's padded patch sequences; the last image is a row of patches shorter."""
    import torch

    batch_size, channels, height, width = images.shape
    rows, columns = height // patch, width // patch
    patches = images.reshape(batch_size, channels, rows, patch, columns, patch).permute(0, 2, 4, 3, 5, 1)
    patches = patches.reshape(batch_size, rows * columns, patch * patch * channels).contiguous()
    mask = torch.ones(batch_size, rows * columns, dtype=torch.int32)
    shapes = torch.tensor([[rows, columns]] * batch_size)
    mask[-1, (rows - 1) * columns :] = 0
    patches[-1, (rows - 1) * columns :] = 0
    shapes[-1, 0] = rows - 1
    return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": shapes}


def _randomise(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> None:
    """Redraw the weights from the global generator and put the model in eval mode.

    Stock initialisations are useless to tests of what the logits depend on: biases and some heads start at zero, layer
    scales and residual branches at (nearly) zero, and in eval mode batch norms start as the identity, which lets deep
    networks fade or blow up. Hence weights scaled by fan-in, noise on everything else, and batch norm statistics that
    fit the scale of ``batch``.
    """
    import torch
    from torch import nn

    dense = {module.weight for module in model.modules() if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))}
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter in dense:
                parameter.normal_(std=1.2 / math.sqrt(parameter[0].numel()))
                continue
            if parameter.ndim == 1 and name.endswith(".weight"):
                parameter.fill_(1)  # a norm's; some models start them all at zero
            parameter.add_(torch.randn_like(parameter), alpha=0.1)

        hooks = [norm.register_forward_pre_hook(_set_statistics) for norm in norms]
        if norms:
            model(**batch)
        for hook in hooks:
            hook.remove()
    model.train().eval()  # drops what some attentions cache in eval mode: a caller expects a model that has not run


def _set_statistics(norm, args) -> None:
    import torch

    # One scale for all channels, and no centring: with the exact statistics of a batch, the distance to it of any
    # other image grows exponentially with depth in a random network, to logits of 10^4 that are all rounding error.
    power = args[0].square().mean().item()
    norm.running_var.copy_(power * torch.empty_like(norm.running_var).uniform_(0.2, 0.6))
    norm.running_mean.copy_(0.1 * math.sqrt(power) * torch.randn_like(norm.running_mean))


def use_natten_stand_in() -> None:
    """Let transformers' Dinat run without natten, by way of a slow implementation in plain torch.

    natten is compiled for one version of torch, and the versions with the functions that transformers calls predate
    current torch; besides, transformers 5.23 hands them tensors whose axes are in the wrong order. A process that
    loads a saved Dinat has to call this first.
    """
    from transformers.models.dinat import modeling_dinat

    modeling_dinat.requires_backends = lambda *_: None
    modeling_dinat.NeighborhoodAttention.forward = _neighbourhood_attention


def _neighbourhood_attention(self, hidden_states, output_attentions=False):
    import torch

    heads, kernel_size = self.num_attention_heads, self.kernel_size
    rows, row_bias = _neighbours(hidden_states.shape[1], kernel_size, self.dilation)
    columns, column_bias = _neighbours(hidden_states.shape[2], kernel_size, self.dilation)
    query, key, value = (
        layer(hidden_states).unflatten(-1, (heads, self.attention_head_size))
        for layer in (self.query, self.key, self.value)
    )
    # batch, height, window row, width, window column, heads, channels
    key, value = (tensor[:, rows][:, :, :, columns] for tensor in (key, value))
    scores = torch.einsum("byxhc,byixjhc->bhyxij", query, key) / math.sqrt(self.attention_head_size)
    scores = scores + self.rpb[:, row_bias[:, None, :, None], column_bias[:, None]]
    probabilities = self.dropout(scores.flatten(4).softmax(-1))
    context = torch.einsum("bhyxij,byixjhc->byxhc", probabilities.unflatten(4, (kernel_size, kernel_size)), value)
    return (context.flatten(3), probabilities) if output_attentions else (context.flatten(3),)


def _neighbours(length: int, kernel_size: int, dilation: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, for each position of an axis, its neighbourhood and the indices of its relative position biases."""
    import torch

    position = torch.arange(length)
    # A position attends within its residue class modulo the dilation; at the borders the window stops, not shrinks.
    step, residue = position // dilation, position % dilation
    steps = (length - 1 - residue) // dilation + 1
    first = torch.minimum((step - kernel_size // 2).clamp(min=0), steps - kernel_size)
    window = first[:, None] + torch.arange(kernel_size)
    return window * dilation + residue[:, None], window - step[:, None] + kernel_size - 1


_VIT = {
    "num_labels": NUM_LABELS,
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
_DINOV2 = {key: value for key, value in _VIT.items() if key != "intermediate_size"} | {"mlp_ratio": 2}
_BEIT = _VIT | {"use_relative_position_bias": True, "out_indices": [1, 2]}
_VISION_TOWER = {key: value for key, value in _VIT.items() if key != "num_labels"}
# Text towers belong to these configurations, but not to the classifiers.
_TEXT_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
_TWO_TOWERS = {
    "num_labels": NUM_LABELS,
    "vision_config": _VISION_TOWER | {"projection_dim": 32},
    "text_config": _TEXT_TOWER,
    "projection_dim": 32,
}
_SWIN = {
    "num_labels": NUM_LABELS,
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [2, 1],
    "num_heads": [2, 2],
    "window_size": 4,
    "mlp_ratio": 2.0,
}
_CONVNEXT = {"num_labels": NUM_LABELS, "num_stages": 2, "hidden_sizes": [16, 32], "depths": [1, 1], "image_size": 32}
_LEVIT = {
    "num_labels": NUM_LABELS,
    "image_size": 64,
    "hidden_sizes": [16, 32, 48],
    "num_attention_heads": [1, 2, 3],
    "depths": [1, 1, 1],
    "key_dim": [8, 8, 8],
}
_PERCEIVER = {
    "num_labels": NUM_LABELS,
    "image_size": 16,
    "num_latents": 8,
    "d_latents": 32,
    "num_self_attends_per_block": 1,
    "num_self_attention_heads": 2,
    "num_cross_attention_heads": 1,
}
_PYRAMID = {
    "num_labels": NUM_LABELS,
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "sr_ratios": [2, 1],
    "hidden_sizes": [16, 32],
    "patch_sizes": [7, 3],
    "strides": [4, 2],
    "num_attention_heads": [1, 2],
    "mlp_ratios": [2, 2],
}

ZOO: dict[str, TinyModel] = {
    entry.id: entry
    for entry in (
        TinyModel("beit", "BeitForImageClassification", "BeitConfig", _BEIT, 32),
        TinyModel(
            "bit",
            "BitForImageClassification",
            "BitConfig",
            {
                "num_labels": NUM_LABELS,
                "embedding_size": 16,
                "hidden_sizes": [32, 64],
                "depths": [1, 1],
                "num_groups": 4,
            },
            32,
        ),
        TinyModel("clip", "CLIPForImageClassification", "CLIPConfig", _TWO_TOWERS, 32),
        TinyModel("convnext", "ConvNextForImageClassification", "ConvNextConfig", _CONVNEXT, 32),
        TinyModel("convnextv2", "ConvNextV2ForImageClassification", "ConvNextV2Config", _CONVNEXT, 32),
        TinyModel(
            "cvt",
            "CvtForImageClassification",
            "CvtConfig",
            {
                "num_labels": NUM_LABELS,
                "patch_sizes": [7, 3],
                "patch_stride": [4, 2],
                "patch_padding": [2, 1],
                "embed_dim": [16, 32],
                "num_heads": [1, 2],
                "depth": [1, 2],  # transformers indexes a stage's layers by the stage, so each needs one more
                "mlp_ratio": [2.0, 2.0],
                "attention_drop_rate": [0.0, 0.0],
                "drop_rate": [0.0, 0.0],
                "drop_path_rate": [0.0, 0.0],
                "qkv_bias": [True, True],
                "cls_token": [False, True],
                "qkv_projection_method": ["dw_bn", "dw_bn"],
                "kernel_qkv": [3, 3],
                "padding_kv": [1, 1],
                "stride_kv": [2, 2],
                "padding_q": [1, 1],
                "stride_q": [1, 1],
            },
            32,
        ),
        TinyModel("data2vec-vision", "Data2VecVisionForImageClassification", "Data2VecVisionConfig", _BEIT, 32),
        TinyModel("deit", "DeiTForImageClassification", "DeiTConfig", _VIT, 32),
        TinyModel("deit-with-teacher", "DeiTForImageClassificationWithTeacher", "DeiTConfig", _VIT, 32),
        TinyModel(
            "dinat",
            "DinatForImageClassification",
            "DinatConfig",
            {
                "num_labels": NUM_LABELS,
                "embed_dim": 16,
                "depths": [2, 1],
                "num_heads": [2, 2],
                "kernel_size": 3,
                "dilations": [[1, 2], [1]],
                "mlp_ratio": 2.0,
            },
            32,
        ),
        TinyModel("dinov2", "Dinov2ForImageClassification", "Dinov2Config", _DINOV2, 32),
        TinyModel(
            "dinov2-with-registers",
            "Dinov2WithRegistersForImageClassification",
            "Dinov2WithRegistersConfig",
            _DINOV2,
            32,
        ),
        TinyModel("donut-swin", "DonutSwinForImageClassification", "DonutSwinConfig", _SWIN, 32),
        TinyModel(
            "efficientnet",
            "EfficientNetForImageClassification",
            "EfficientNetConfig",
            {
                "num_labels": NUM_LABELS,
                "image_size": 32,
                "width_coefficient": 0.05,
                "depth_coefficient": 1.0,
                "kernel_sizes": [3, 5],
                "in_channels": [32, 320],
                "out_channels": [320, 320],
                "strides": [1, 2],
                "num_block_repeats": [1, 2],
                "expand_ratios": [1, 2],
                "hidden_dim": 64,  # must be round(1280 * width_coefficient)
            },
            32,
        ),
        TinyModel(
            "focalnet",
            "FocalNetForImageClassification",
            "FocalNetConfig",
            {
                "num_labels": NUM_LABELS,
                "image_size": 32,
                "embed_dim": 16,
                "hidden_sizes": [16, 32],
                "depths": [1, 1],
                "focal_levels": [2, 2],
                "focal_windows": [3, 3],
                "mlp_ratio": 2.0,
            },
            32,
        ),
        TinyModel(
            "hgnet-v2",
            "HGNetV2ForImageClassification",
            "HGNetV2Config",
            {
                "num_labels": NUM_LABELS,
                "embedding_size": 16,
                "depths": [1, 1],
                "hidden_sizes": [16, 32],
                "stem_channels": [3, 16, 16],
                "stage_in_channels": [16, 16],
                "stage_mid_channels": [16, 16],
                "stage_out_channels": [16, 32],
                "stage_num_blocks": [1, 1],
                "stage_downsample": [False, True],
                "stage_downsample_strides": [2, 2],
                "stage_light_block": [False, True],
                "stage_kernel_size": [3, 5],
                "stage_numb_of_layers": [2, 2],
            },
            32,
        ),
        TinyModel(
            "hiera",
            "HieraForImageClassification",
            "HieraConfig",
            {
                "num_labels": NUM_LABELS,
                "image_size": [32, 32],
                "embed_dim": 16,
                "depths": [1, 1],
                "num_heads": [1, 2],
                "num_query_pool": 1,
                "masked_unit_size": [4, 4],
                "masked_unit_attention": [True, False],
                "mlp_ratio": 2.0,
            },
            32,
        ),
        TinyModel("ijepa", "IJepaForImageClassification", "IJepaConfig", _VIT, 32),
        TinyModel(
            "imagegpt",
            "ImageGPTForImageClassification",
            "ImageGPTConfig",
            {
                "num_labels": NUM_LABELS,
                "vocab_size": 33,
                "n_positions": 64,
                "n_embd": 32,
                "n_layer": 2,
                "n_head": 2,
                "n_inner": 64,
            },
            8,
            main_input="input_ids",
        ),
        TinyModel("levit", "LevitForImageClassification", "LevitConfig", _LEVIT, 64),
        TinyModel("levit-with-teacher", "LevitForImageClassificationWithTeacher", "LevitConfig", _LEVIT, 64),
        TinyModel("metaclip-2", "MetaClip2ForImageClassification", "MetaClip2Config", _TWO_TOWERS, 32),
        TinyModel(
            "mobilenet-v1",
            "MobileNetV1ForImageClassification",
            "MobileNetV1Config",
            {"num_labels": NUM_LABELS, "depth_multiplier": 0.03125, "min_depth": 16, "image_size": 32},
            32,
        ),
        TinyModel(
            "mobilenet-v2",
            "MobileNetV2ForImageClassification",
            "MobileNetV2Config",
            {
                "num_labels": NUM_LABELS,
                "depth_multiplier": 0.05,
                "finegrained_output": False,  # or the head stays 1280 wide
                "expand_ratio": 2.0,
                "image_size": 32,
            },
            32,
        ),
        TinyModel(
            "mobilevit",
            "MobileViTForImageClassification",
            "MobileViTConfig",
            {
                "num_labels": NUM_LABELS,
                "image_size": 64,
                "hidden_sizes": [16, 16, 16],
                "neck_hidden_sizes": [16, 16, 16, 16, 16, 16, 32],
                "num_attention_heads": 2,
                "expand_ratio": 1.0,
            },
            64,
        ),
        TinyModel(
            "mobilevitv2",
            "MobileViTV2ForImageClassification",
            "MobileViTV2Config",
            {
                "num_labels": NUM_LABELS,
                "image_size": 64,
                "width_multiplier": 0.125,
                "n_attn_blocks": [1, 1, 1],
                "expand_ratio": 1.0,
            },
            64,
        ),
        TinyModel(
            "perceiver-learned",
            "PerceiverForImageClassificationLearned",
            "PerceiverConfig",
            _PERCEIVER | {"d_model": 512},  # d_model must be the width of the preprocessor, which is fixed
            16,
            main_input="inputs",
        ),
        TinyModel(
            "perceiver-fourier",
            "PerceiverForImageClassificationFourier",
            "PerceiverConfig",
            _PERCEIVER | {"d_model": 261},
            16,
            main_input="inputs",
        ),
        TinyModel(
            "perceiver-conv",
            "PerceiverForImageClassificationConvProcessing",
            "PerceiverConfig",
            _PERCEIVER | {"d_model": 322},
            16,
            main_input="inputs",
        ),
        TinyModel(
            "poolformer",
            "PoolFormerForImageClassification",
            "PoolFormerConfig",
            {
                "num_labels": NUM_LABELS,
                "num_encoder_blocks": 2,
                "depths": [1, 1],
                "hidden_sizes": [16, 32],
                "patch_sizes": [7, 3],
                "strides": [4, 2],
                "padding": [2, 1],
                "mlp_ratio": 2.0,
            },
            32,
        ),
        TinyModel(
            "pp-lcnet",
            "PPLCNetForImageClassification",
            "PPLCNetConfig",
            {
                "num_labels": NUM_LABELS,
                "block_configs": [  # kernel size, channels in, channels out, stride, squeeze and excitation
                    [[3, 16, 16, 1, False]],
                    [[3, 16, 16, 2, False]],
                    [[3, 16, 16, 2, False]],
                    [[3, 16, 32, 1, False]],
                    [[5, 32, 32, 2, True]],
                ],
                "class_expand": 64,
            },
            32,
        ),
        TinyModel(
            "pvt",
            "PvtForImageClassification",
            "PvtConfig",
            {key: value for key, value in _PYRAMID.items() if key != "sr_ratios"}
            | {"sequence_reduction_ratios": [2, 1], "patch_sizes": [4, 2], "image_size": 32},
            32,
        ),
        TinyModel("pvt-v2", "PvtV2ForImageClassification", "PvtV2Config", _PYRAMID | {"image_size": 32}, 32),
        TinyModel(
            "regnet",
            "RegNetForImageClassification",
            "RegNetConfig",
            {
                "num_labels": NUM_LABELS,
                "embedding_size": 16,
                "hidden_sizes": [16, 32],
                "depths": [1, 1],
                "groups_width": 8,
            },
            32,
        ),
        TinyModel(
            "resnet",
            "ResNetForImageClassification",
            "ResNetConfig",
            {
                "num_labels": NUM_LABELS,
                "embedding_size": 16,
                "hidden_sizes": [16, 32],
                "depths": [1, 1],
                "layer_type": "basic",
            },
            32,
        ),
        TinyModel("segformer", "SegformerForImageClassification", "SegformerConfig", _PYRAMID, 32),
        TinyModel(
            "siglip",
            "SiglipForImageClassification",
            "SiglipConfig",
            {"num_labels": NUM_LABELS, "vision_config": _VISION_TOWER, "text_config": _TEXT_TOWER},
            32,
        ),
        TinyModel(
            "siglip2",
            "Siglip2ForImageClassification",
            "Siglip2Config",
            {
                "num_labels": NUM_LABELS,
                "vision_config": {key: value for key, value in _VISION_TOWER.items() if key != "image_size"}
                | {"num_patches": 16},
                "text_config": _TEXT_TOWER,
            },
            32,
        ),
        TinyModel(
            "swiftformer",
            "SwiftFormerForImageClassification",
            "SwiftFormerConfig",
            {
                "num_labels": NUM_LABELS,
                "image_size": 32,
                "depths": [1, 1],
                "embed_dims": [16, 32],
                "mlp_ratio": 2,
                "downsamples": [True, True],
            },
            32,
        ),
        TinyModel("swin", "SwinForImageClassification", "SwinConfig", _SWIN, 32),
        TinyModel(
            "swinv2", "Swinv2ForImageClassification", "Swinv2Config", _SWIN | {"pretrained_window_sizes": [0, 0]}, 32
        ),
        TinyModel(
            "textnet",
            "TextNetForImageClassification",
            "TextNetConfig",
            {
                "num_labels": NUM_LABELS,
                "image_size": [32, 32],
                "stem_out_channels": 16,
                "conv_layer_kernel_sizes": [[[3, 3]], [[1, 3]], [[3, 1]], [[3, 3]]],
                "conv_layer_strides": [[1], [2], [2], [1]],
                "hidden_sizes": [16, 16, 16, 16, 32],
            },
            32,
        ),
        TinyModel(
            "timm-wrapper",
            "TimmWrapperForImageClassification",
            "TimmWrapperConfig",
            {"num_labels": NUM_LABELS, "architecture": "test_resnet"},
            32,
        ),
        TinyModel("vit", "ViTForImageClassification", "ViTConfig", _VIT, 32),
        TinyModel("vit-msn", "ViTMSNForImageClassification", "ViTMSNConfig", _VIT, 32),
    )
}

# A language model that answers yes or no about an image and a policy; there are no classes to erase.
REFUSED: dict[str, TinyModel] = {
    "shieldgemma2": TinyModel(
        "shieldgemma2",
        "ShieldGemma2ForImageClassification",
        "ShieldGemma2Config",
        {
            "vision_config": _VISION_TOWER | {"vision_use_head": False},
            "text_config": _TEXT_TOWER
            | {"vocab_size": 64, "head_dim": 16, "num_key_value_heads": 1, "max_position_embeddings": 64},
            "mm_tokens_per_image": 4,
            "boi_token_index": 60,
            "eoi_token_index": 61,
            "image_token_index": 62,
            "yes_token_index": 50,
            "no_token_index": 51,
        },
        32,
        main_input="input_ids",
    ),
}

# Image size and keyword arguments of timm.create_model, by architecture; about one, the smallest, per module of timm
# and kind of head. The arguments make a network fit a small image, or cut one down that is large or slow.
_TIMM_SETTINGS: dict[str, tuple[int, dict]] = {
    "beit_base_patch16_224": (64, {"img_size": 64, "embed_dim": 64, "depth": 2, "num_heads": 2}),
    "caformer_s18": (64, {}),
    "cait_xxs24_224": (64, {"img_size": 64, "depth": 3}),
    "coat_lite_tiny": (64, {"img_size": 64}),  # save_pretrained refuses it: blocks share their weights
    "convit_tiny": (64, {"img_size": 64, "depth": 4, "local_up_to_layer": 3}),
    "convmixer_768_32": (56, {}),
    "convnext_zepto_rms": (64, {}),
    "cpubone_nano": (64, {}),
    "crossvit_tiny_240": (240, {}),
    "cs3darknet_focus_s": (64, {}),
    "csatv2": (128, {}),
    "cspnext_tiny": (64, {}),
    "davit_tiny": (64, {"embed_dims": [32, 64, 128, 256], "num_heads": [1, 2, 4, 8]}),
    "deit3_small_patch16_224": (64, {"img_size": 64, "depth": 2}),
    "deit_tiny_distilled_patch16_224": (64, {"img_size": 64, "depth": 4}),
    "densenet121": (64, {}),
    "dla46x_c": (64, {}),
    "dpn48b": (64, {}),
    "edgenext_xx_small": (64, {}),
    "efficientformer_l1": (224, {}),
    "efficientformerv2_s0": (64, {"img_size": 64}),
    "efficientvim_m1": (64, {}),
    "efficientvim_m1_dist": (64, {}),
    "efficientvit_b0": (64, {}),
    "efficientvit_m0": (224, {}),
    "ese_vovnet19b_slim_dw": (64, {}),
    "eva02_tiny_patch14_336": (56, {"img_size": 56, "depth": 3}),
    "fasternet_t0": (64, {}),
    "fastvit_t8": (64, {}),
    "focalnet_tiny_srf": (64, {}),
    "gcvit_xxtiny": (224, {}),
    "ghostnet_050": (64, {}),
    "ghostnetv3_050": (64, {}),
    "gmlp_ti16_224": (64, {"img_size": 64}),
    "hardcorenas_a": (64, {}),
    "hgnetv2_b0": (64, {}),
    "hiera_tiny_224": (224, {"embed_dim": 32}),
    "hieradet_small": (64, {"embed_dim": 32}),
    "hrnet_w18_small": (64, {}),
    "iformer_m_distilled": (64, {}),
    "iformer_t": (64, {}),
    "inception_next_atto": (64, {}),
    "inception_v3": (96, {}),
    "lambda_resnet26t": (64, {}),
    "lcnet_035": (64, {}),
    "lcnetv2_small": (64, {}),
    "legacy_seresnet18": (64, {}),
    "legacy_xception": (96, {}),
    "levit_128s": (224, {}),
    "levit_256d": (224, {}),
    "levit_conv_128s": (224, {}),
    "lowformer_b0": (64, {}),
    "mambaout_femto": (64, {}),
    "maxvit_pico_rw_256": (128, {"img_size": 128}),
    "mobilenetv2_035": (64, {}),
    "mobilenetv3_small_050": (64, {}),
    "mobilenetv4_conv_small_035": (64, {}),
    "mobileone_s1": (64, {}),
    "mobilevit_xxs": (64, {}),
    "mobilevitv2_050": (64, {}),
    "mvitv2_tiny": (64, {"img_size": [64, 64]}),
    "naflexvit_so150m2_patch16_reg1_map": (64, {"embed_dim": 64, "depth": 2, "num_heads": 2}),
    "nasnetalarge": (96, {"num_features": 24 * 32, "stem_size": 32}),
    "nest_tiny": (64, {"img_size": 64}),
    "nextvit_small": (64, {}),
    "nf_regnet_b0": (64, {}),
    "pit_ti_distilled_224": (96, {"img_size": 96}),
    "poolformerv2_s12": (64, {}),
    "pvt_v2_b0": (64, {}),
    "rdnet_tiny": (64, {}),
    "regnetx_002": (64, {}),
    "regnety_002": (64, {}),
    "repghostnet_050": (64, {}),
    "repvit_m1": (64, {}),
    "res2net50_14w_8s": (64, {"layers": [1, 1, 1, 1], "channels": [64, 64, 64, 64]}),
    "resmlp_12_224": (64, {"img_size": 64}),
    "resnest14d": (64, {"channels": [64, 64, 64, 64]}),
    "resnet10t": (64, {}),
    "resnet50_clip": (64, {"img_size": 64, "width_factor": 0.25}),
    "resnet50_mlp": (64, {"width_factor": 0.25}),
    "resnetv2_18": (64, {}),
    "rexnetr_130": (64, {}),
    "samvit_base_patch16_224": (64, {"img_size": 64, "embed_dim": 64, "depth": 2, "num_heads": 2}),
    "selecsls42": (96, {}),
    "sequencer2d_s": (64, {"img_size": 64, "layers": [1, 1, 2, 1]}),
    "shvit_s1": (128, {}),
    "skresnet18": (64, {}),
    "starnet_s050": (64, {}),
    "swiftformer_xs": (64, {}),
    "swin_tiny_patch4_window7_224": (64, {"img_size": 64, "embed_dim": 48, "window_size": 4}),
    "swinv2_cr_tiny_224": (64, {"img_size": [64, 64], "embed_dim": 48}),
    "swinv2_tiny_window8_256": (64, {"img_size": 64, "embed_dim": 48}),
    "test_byobnet": (64, {}),
    "test_coatnet": (64, {"img_size": 64}),
    "test_convnext": (64, {}),
    "test_efficientnet": (64, {}),
    "test_efficientnet_evos": (64, {}),
    "test_mambaout": (64, {}),
    "test_maxvit": (64, {"img_size": 64}),
    "test_nfnet": (64, {}),
    "test_resnet": (64, {}),
    "test_vit": (64, {"img_size": 64}),
    "test_vit3": (64, {"img_size": 64}),
    "test_vit_relpos": (64, {"img_size": 64}),
    "tiny_vit_5m_224": (64, {}),
    "tnt_s_patch16_224": (64, {"img_size": 64, "depth": 2}),
    "tresnet_m": (64, {"layers": [1, 1, 2, 1]}),
    "twins_pcpvt_small": (64, {"img_size": 64, "depths": [1, 1, 1, 1]}),
    "twins_svt_small": (64, {"img_size": 64, "depths": [2, 2, 2, 2]}),
    "vgg11": (64, {"mlp_ratio": 0.0625}),
    "visformer_tiny": (64, {"img_size": 64}),
    "vit_pe_core_tiny_patch16_384": (64, {"img_size": 64, "depth": 2}),
    "vit_tiny_r_s16_p8_224": (64, {"img_size": 64, "depth": 2}),
    "vitamin_small_224": (64, {"img_size": 64}),
    "volo_d1_224": (64, {"img_size": 64}),
    "xception41": (96, {}),
    "xcit_nano_12_p16_224": (64, {"img_size": 64, "depth": 3}),
}


TIMM: tuple[str, ...] = tuple(_TIMM_SETTINGS)
# Each at most some 0.3 s for building and a forward pass, and each with another kind of head.
TIMM_FAST: tuple[str, ...] = (
    "test_resnet",  # pooling and fc
    "test_efficientnet",  # pooling and classifier
    "test_vit",  # head on the class token
    "test_vit3",  # head after attention pooling
    "test_convnext",  # pooling, norm, fc
    "test_mambaout",  # the same with channels last
    "mambaout_femto",  # hidden layer, norm, fc
    "dla46x_c",  # 1x1 convolution, then flattened
    "resnetv2_18",  # 1x1 convolution within a head module
    "resnet50_clip",  # attention pooling that ends in the classifier
    "efficientvit_b0",  # classifier within a Sequential
    "efficientvit_m0",  # batch norm and linear layer fused into a head
    "inception_next_atto",  # fc2 after a hidden layer
    "cpubone_nano",  # linear layer in two wrappers
    "iformer_t",  # head modules nested in a classifier module
    "deit_tiny_distilled_patch16_224",  # average of two heads on two tokens
    "efficientformerv2_s0",  # average of two heads on the same features
    "efficientvim_m1",  # weighted sum of a head for each stage
)


def timm_model(name: str) -> TinyModel:
    """Return the timm architecture as an entry of the zoo."""
    size, model_args = _TIMM_SETTINGS[name]
    config = {"num_labels": NUM_LABELS, "architecture": name, "model_args": model_args}
    return TinyModel(name, "TimmWrapperForImageClassification", "TimmWrapperConfig", config, size)


def _skip_without(architecture: str) -> None:
    """End the test where timm is older than the architecture. From 1.0.31 on, timm has all of them."""
    import timm

    if Version(timm.__version__) < Version("1.0.31") and not timm.is_model(architecture):
        pytest.skip(f"timm {timm.__version__} has no {architecture}")


def build_timm(name: str, seed: int = 0) -> PreTrainedModel:
    """Return the timm architecture in transformers' wrapper, with random weights and in eval mode."""
    return timm_model(name).build(seed)


def timm_inputs(name: str, batch_size: int = 3, seed: int = 1) -> dict[str, torch.Tensor]:
    """Return a seeded batch of images of the size that the timm architecture was built for."""
    return timm_model(name).inputs(batch_size, seed)
