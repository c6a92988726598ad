"""The layers that mechanisms and heads are built from."""

from torch import nn

from segvid.attention.atrous import AtrousConv2d


def conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int = 1, *, dilation: int = 1) -> nn.Sequential:
    """Convolution without bias (He initialisation), batch norm, ReLU; the spatial size is kept.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, H, W).
    """
    padding = dilation * (kernel_size // 2)
    conv_class = AtrousConv2d if dilation > 1 and kernel_size == 3 else nn.Conv2d
    conv = conv_class(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def point_conv_bn_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    """The 1x1 form of `conv_bn_relu` for a grid of any number of axes, flattened.

    Shape:
        (B, in_channels, N) -> (B, out_channels, N).
    """
    conv = nn.Conv1d(in_channels, out_channels, 1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm1d(out_channels), nn.ReLU(inplace=True))


def zero_norm(channels: int, eps: float = 1e-5) -> nn.BatchNorm1d:
    """Batch norm whose weight starts at 0: a residual block that ends with it starts as the identity."""
    norm = nn.BatchNorm1d(channels, eps=eps)
    nn.init.zeros_(norm.weight)
    return norm
