"""The convolution block that mechanisms and heads are built from."""

from torch import nn


def conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int = 1, *, dilation: int = 1) -> nn.Sequential:
    """Convolution without bias (He initialisation), batch norm, ReLU; the spatial size is kept.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, H, W).
    """
    padding = dilation * (kernel_size // 2)
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))
