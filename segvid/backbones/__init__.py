"""Backbones: image to feature maps, finest first, at a measured stride."""

from segvid.backbones.base import Backbone
from segvid.backbones.convnet import ConvNet
from segvid.backbones.resnet import ResNet
from segvid.backbones.smp import SMPEncoder

__all__ = ["Backbone", "ConvNet", "ResNet", "SMPEncoder"]
