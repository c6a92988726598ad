"""OCNet head: object context, plain, in a pyramid, or in place of ASPP's image pooling.

Paper: Yuan et al., "OCNet: Object Context for Semantic Segmentation", IJCV 2021 (2018), section 3,
https://arxiv.org/abs/1809.00916
Official code consulted: openseg-group/OCNet.pytorch. Deliberate: ReLU where it has leaky ReLU(0.01) (in-place ABN); the
pyramid and the ASP form differ from the released ones, see `segvid.attention.context.object_context`.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from segvid.attention.context.object_context import ASPObjectContext, ObjectContext, PyramidObjectContext
from segvid.attention.layers import conv_bn_relu
from segvid.segmentation.heads.base import SegmentationHead, classifier, default_channels


class OCNetHead(SegmentationHead):
    """conv3x3, object context (concatenated with its input in the base form), conv1x1, classifier.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        num_classes: channels of the logits.
        channels: width of the head; in_channels / 4, at least 64, when None.
        form: "base", "pyramid" or "asp".
        key_channels: channels of query and key, of the base and the pyramid form; channels / 2 when None.
        value_channels: channels of the values, likewise.
        shared_query_key: one projection for query and key, as in the paper.
        downsample: max pooling before the attention, of the base form.
        sizes: blocks along each axis, of the pyramid form.
        rates: dilations, of the ASP form.
        dropout: channel dropout before the classifier.

    Shape:
        list of (B, C_i, H_i, W_i) -> (B, num_classes, H_last, W_last).
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        channels: int | None = None,
        form: Literal["base", "pyramid", "asp"] = "base",
        key_channels: int | None = None,
        value_channels: int | None = None,
        shared_query_key: bool = True,
        downsample: int = 1,
        sizes: Sequence[int] = (1, 2, 3, 6),
        rates: Sequence[int] = (12, 24, 36),
        dropout: float = 0.05,
    ) -> None:
        super().__init__(in_channels, num_classes)
        width = default_channels(channels, in_channels[-1])
        self.concat_input = form == "base"
        self.in_conv = conv_bn_relu(in_channels[-1], width, 3)
        self.bottleneck: nn.Module = nn.Identity()  # the ASP form ends with a projection of its own
        if form == "base":
            self.context: nn.Module = ObjectContext(
                width,
                key_channels=key_channels,
                value_channels=value_channels,
                shared_query_key=shared_query_key,
                downsample=downsample,
            )
            self.bottleneck = conv_bn_relu(2 * width, width)
        elif form == "pyramid":
            pyramid = PyramidObjectContext(
                width,
                sizes=sizes,
                key_channels=key_channels,
                value_channels=value_channels,
                shared_query_key=shared_query_key,
            )
            self.context = pyramid
            self.bottleneck = conv_bn_relu(pyramid.out_channels, width)
        elif form == "asp":
            self.context = ASPObjectContext(width, rates=rates, shared_query_key=shared_query_key)
        else:
            raise ValueError(f"form is {form!r}; use 'base', 'pyramid' or 'asp'.")
        self.classifier = classifier(width, num_classes, dropout)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.in_conv(features[-1])
        y = self.context(x)
        if self.concat_input:
            y = torch.cat([y, x], dim=1)
        logits: Tensor = self.classifier(self.bottleneck(y))
        return logits
