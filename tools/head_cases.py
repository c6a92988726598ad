"""The heads that `benchmark_heads.py` compares: ours, and mmsegmentation's as it has to be built to be the same.

mmsegmentation is imported when it is installed. Its PSANet needs an operator that mmcv-lite has not: a loop over the
positions stands in for it.
"""

import functools
import importlib
import importlib.util
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from segvid.segmentation import heads
from segvid.segmentation.heads.base import SegmentationHead

Side = Literal["ours", "peer"]

CHANNELS = (256, 512, 1024, 2048)
CLASSES = 19
MODES = ("forward", "train")


# Which head of mmsegmentation belongs to which of ours


@dataclass(frozen=True)
class Peer:
    """Name and options of mmsegmentation's head, our options where the defaults differ, and what still differs."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    ours: Mapping[str, Any] = field(default_factory=dict)
    differs: str = ""


PEERS = {
    "ANNHead": Peer("ANNHead", {"in_channels": [1024, 2048], "in_index": [2, 3], "project_channels": 256}),
    "APCNetHead": Peer("APCHead", {"pool_scales": (1, 2, 3, 6)}),
    "CCNetHead": Peer("CCHead"),
    "DANetHead": Peer("DAHead", {"pam_channels": 64}, {}, "the peer classifies all three maps in evaluation too"),
    "DNLNetHead": Peer("DNLHead"),
    "DeepLabV3Head": Peer(
        "ASPPHead",
        {"dilations": (1, 12, 24, 36)},
        {"channels": 512},
        "ours with the peer's 512 channels (default 256); the peer fuses with 3x3, ours with the paper's 1x1",
    ),
    "DeepLabV3PlusHead": Peer(
        "DepthwiseSeparableASPPHead",
        {"dilations": (1, 12, 24, 36), "c1_in_channels": 256, "c1_channels": 48},
        {},
        "the peer: 512 channels, depthwise separable 3x3, and a 3x3 fusion; ours: 256 channels, full 3x3, a 1x1 fusion",
    ),
    "EMANetHead": Peer(
        "EMAHead",
        {"channels": 256, "ema_channels": 512, "num_bases": 64, "num_stages": 3, "concat_input": False},
        {},
        "the peer without its concatenation (concat_input=False): the paper has none",
    ),
    "FCNHead": Peer("FCNHead"),
    "GCNetHead": Peer("GCHead", {"ratio": 0.25, "pooling_type": "att", "fusion_types": ("channel_add",)}),
    "ISANetHead": Peer("ISAHead", {"isa_channels": 256, "down_factor": (8, 8)}),
    "NonLocalHead": Peer("NLHead"),
    "PSANetHead": Peer("PSAHead"),
    "PSPNetHead": Peer("PSPHead"),
}


class _MissingExtension(ModuleType):
    """Stands for mmcv's compiled module, so that mmsegmentation can be imported; its functions raise."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError(f"mmcv._ext.{name} is a compiled operator, and mmcv-lite has none.")

        return missing


def psa_windows(mask: Tensor, affinity: Tensor, collect: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """For each position the offsets that it predicts, and where they belong: views of the same shape.

    Shape:
        mask (B, Mh, Mw, H, W), affinity (B, H, W, H, W) -> pairs of (B, rows, columns).
    """
    mask_height, mask_width, height, width = mask.shape[1:]
    half_height, half_width = (mask_height - 1) // 2, (mask_width - 1) // 2
    for h in range(height):
        top, bottom = max(0, half_height - h), min(mask_height, height + half_height - h)
        rows = slice(top + h - half_height, bottom + h - half_height)
        for w in range(width):
            left, right = max(0, half_width - w), min(mask_width, width + half_width - w)
            columns = slice(left + w - half_width, right + w - half_width)
            target = affinity[:, rows, columns, h, w] if collect else affinity[:, h, w, rows, columns]
            yield mask[:, top:bottom, left:right, h, w], target


class PSAMaskLoop(torch.autograd.Function):
    """The formula of mmcv's compiled psamask, forward and backward, as a loop over the positions."""

    @staticmethod
    def forward(ctx: Any, mask: Tensor, psa_type: int, mask_size: tuple[int, int]) -> Tensor:
        batch, _, height, width = mask.shape
        ctx.collect, ctx.shape = psa_type == 0, (batch, *mask_size, height, width)
        affinity = mask.new_zeros(batch, height, width, height, width)
        for predicted, target in psa_windows(mask.reshape(ctx.shape), affinity, ctx.collect):
            target.copy_(predicted)
        return affinity.reshape(batch, height * width, height, width)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        batch, _, _, height, width = ctx.shape
        grad_mask = grad.new_zeros(ctx.shape)
        grad_affinity = grad.reshape(batch, height, width, height, width)
        for predicted, target in psa_windows(grad_mask, grad_affinity, ctx.collect):
            predicted.copy_(target)
        return grad_mask.reshape(batch, -1, height, width), None, None


@functools.cache
def import_peer() -> tuple[Any, bool]:
    """mmsegmentation's decode heads, None if it is not installed; and whether mmcv's compiled operators are there."""
    if importlib.util.find_spec("mmseg") is None:
        return None, False
    warnings.filterwarnings("ignore", module=r"mm(cv|engine|seg).*")
    logging.getLogger("mmengine").setLevel(logging.ERROR)
    compiled = importlib.util.find_spec("mmcv._ext") is not None
    if not compiled:
        sys.modules["mmcv._ext"] = _MissingExtension("mmcv._ext")
        importlib.import_module("mmcv.ops.psa_mask").psa_mask = PSAMaskLoop.apply  # type: ignore[attr-defined]
    return importlib.import_module("mmseg.models.decode_heads"), compiled


# A case: a head of one side, its input, one call


@dataclass(frozen=True)
class Case:
    """One head of one side at one size, for one forward, or for one forward and backward in training mode."""

    side: Side
    head: str
    size: int
    mode: str
    batch: int = 1

    def build(self) -> nn.Module:
        """The head, on the default device."""
        peer = PEERS.get(self.head, Peer(""))
        offsets = 2 * ((self.size - 1) // 2 + 1) - 1  # of a map shrunk by 2: all of PSANet's offsets, at this size only
        module: nn.Module
        if self.side == "ours":
            options = {**peer.ours, **({"mask_size": (offsets, offsets)} if self.head == "PSANetHead" else {})}
            module = getattr(heads, self.head)(CHANNELS, CLASSES, **options)
        else:
            common = {"in_channels": 2048, "in_index": 3, "channels": 512, "num_classes": CLASSES}
            options = {**common, "norm_cfg": {"type": "BN"}, **peer.options}
            options |= {"mask_size": (offsets, offsets)} if self.head == "PSANetHead" else {}
            module = getattr(import_peer()[0], peer.name)(**options)
        return module.train(self.mode == "train")

    def features(self) -> list[Tensor]:
        """What a backbone of output stride 8 gives: not negative, the first map at twice the size of the others."""
        sizes = (2 * self.size, self.size, self.size, self.size)
        maps = [torch.randn(self.batch, c, s, s).relu_() for c, s in zip(CHANNELS, sizes, strict=True)]
        return [m.requires_grad_(self.mode == "train") for m in maps]

    def prepare(self) -> Callable[[], None]:
        """The call to be measured, ready to be made any number of times."""
        module, maps = self.build(), self.features()

        def call() -> None:
            if self.mode == "forward":
                with torch.no_grad():
                    module(maps)
                return
            supervised = module.supervised(maps) if isinstance(module, SegmentationHead) else module(maps)
            outputs = supervised if isinstance(supervised, list | tuple) else [supervised]
            torch.stack([output.sum() for output in outputs]).sum().backward()
            for tensor in (*maps, *module.parameters()):
                tensor.grad = None

        return call


def smallest_batch(cases: Sequence[Case]) -> int:
    """1, or 2 where one of the heads cannot train on one sample: a batch norm on a pooled 1x1 map has one value."""
    try:
        for case in cases:
            with FakeTensorMode():
                case.prepare()()
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        return 2
    except DataDependentOutputException:
        return 1  # it needs values to know what to do, as k-means on the first batch; one sample is enough for it
    return 1
