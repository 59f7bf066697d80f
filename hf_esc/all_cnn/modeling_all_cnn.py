"""The All-CNN. This file travels with its checkpoints, so it needs only torch and transformers."""

# Shapes: B images, c channels in, (H, W) pixels, w1 and w2 the two widths, d = w2 feature dimensions, C classes.

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention
from transformers.modeling_utils import PreTrainedModel

from .configuration_all_cnn import AllCNNConfig


class AllCNNLayer(nn.Sequential):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )


class AllCNNForImageClassification(PreTrainedModel):
    r"""
    All-CNN-C: eight convolutions, a global average and the head. Two of the convolutions have stride 2 and replace
    pooling.

    The original ends in a 1×1 convolution to the C classes and averages its map. The two commute, so here the average
    comes first, and the head is a linear layer on the pooled features \(z \in R^d\). The function is the same.
    """

    config_class = AllCNNConfig
    _auto_class = "AutoModelForImageClassification"  # the code is saved with the checkpoint
    base_model_prefix = "all_cnn"
    main_input_name = "pixel_values"

    def __init__(self, config: AllCNNConfig):
        super().__init__(config)
        w1, w2 = config.hidden_sizes
        self.layers = nn.Sequential(
            AllCNNLayer(config.num_channels, w1, 3, padding=1),
            AllCNNLayer(w1, w1, 3, padding=1),
            nn.Dropout(config.dropout),
            AllCNNLayer(w1, w1, 3, stride=2, padding=1),
            AllCNNLayer(w1, w2, 3, padding=1),
            AllCNNLayer(w2, w2, 3, padding=1),
            nn.Dropout(config.dropout),
            AllCNNLayer(w2, w2, 3, stride=2, padding=1),
            AllCNNLayer(w2, w2, 3),
            AllCNNLayer(w2, w2, 1),
        )
        self.classifier = nn.Linear(w2, config.num_labels)  # type: ignore[arg-type]
        self.loss_type = "ForImageClassification"
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> ImageClassifierOutputWithNoAttention:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(B, c, H, W)`): Images, normalised by the image processor.
            labels (`torch.LongTensor` of shape `(B,)`, *optional*): Class indices, for the cross-entropy loss.
            output_hidden_states (`bool`, *optional*): Whether to return the map after each convolution too,
                `(B, w, H', W')`. By default, the configuration decides.
        """
        maps, hidden = pixel_values, []
        for layer in self.layers:
            maps = layer(maps)
            if isinstance(layer, AllCNNLayer):
                hidden.append(maps)
        features = maps.mean(dim=(2, 3))  # (B, w2, H/4, W/4) -> (B, d)
        logits = self.classifier(features)  # (B, C)
        loss = self.loss_function(labels, logits, self.config) if labels is not None else None
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return ImageClassifierOutputWithNoAttention(
            loss=loss, logits=logits, hidden_states=tuple(hidden) if wanted else None
        )


__all__ = ["AllCNNForImageClassification"]
