"""Configuration of the All-CNN. This file travels with its checkpoints, so it needs only transformers."""

from transformers.configuration_utils import PretrainedConfig


class AllCNNConfig(PretrainedConfig):
    r"""
    Configuration of [`AllCNNForImageClassification`].

    The model is the All-CNN-C of [Striving for Simplicity: The All Convolutional
    Net](https://huggingface.co/papers/1412.6806) with BatchNorm after each convolution. The default is the half-width
    network of the [ESC paper](https://huggingface.co/papers/2504.02199), whose features have 96 dimensions. The
    original has `hidden_sizes=(96, 192)`.

    Args:
        num_channels (`int`, defaults to 3): Channels of the input images.
        hidden_sizes (`Sequence[int]` of length 2, defaults to `(48, 96)`): Width of the first three convolutions, and
            width of the five that follow. The second is also the number of feature dimensions.
        dropout (`float`, defaults to 0.0): Dropout in front of each of the two convolutions of stride 2.
        initializer_range (`float`, defaults to 0.02): Standard deviation of the head's weight at the start.
    """

    model_type = "all_cnn"
    _auto_class = "AutoConfig"  # the code is saved with the checkpoint

    def __init__(self, num_channels=3, hidden_sizes=(48, 96), dropout=0.0, initializer_range=0.02, **kwargs):
        if len(hidden_sizes) != 2 or min(hidden_sizes) < 1:
            raise ValueError(f"`hidden_sizes` takes two positive widths, such as (48, 96), and got {hidden_sizes}.")
        self.num_channels = num_channels
        self.hidden_sizes = list(hidden_sizes)
        self.dropout = dropout
        self.initializer_range = initializer_range
        super().__init__(**kwargs)
