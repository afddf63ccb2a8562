"""The detector's network: a small YOLOv8-style convolutional detector.

    images [B, 3, S, S] ──► backbone (C2f, SPPF) ──► neck (PAN) ──► three heads ──► output0 [B, 4 + C, N]

The shape of the network is that of YOLOv8 (C2f blocks, SPPF, path aggregation, an anchor-free head that
splits boxes from classes); the code is our own. Papers behind its parts:

- path aggregation: PANet, arXiv:1803.01534
- cross-stage splitting, on which C2f rests: CSPNet, arXiv:1911.11929
- pyramid pooling: SPP, arXiv:1406.4729
- box sides as distributions over bins: Generalized Focal Loss, arXiv:2006.04388
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Architecture:
    """The sizes of a detector.

    size: side of the square input, in pixels.
    classes: how many classes it tells apart.
    channels: output channels of the stem and of the stages at strides 4, 8, 16 and 32.
    depths: bottlenecks in each of those four stages.
    neck_depth: bottlenecks in each block of the neck.
    box_width, class_width: channels inside the two branches of the head.
    bins: bins per box side; a side is at most ``bins - 1`` strides long.
    """

    size: int = 256
    classes: int = 10
    channels: tuple[int, int, int, int, int] = (16, 32, 64, 96, 160)
    depths: tuple[int, int, int, int] = (1, 2, 2, 1)
    neck_depth: int = 1
    box_width: int = 48
    class_width: int = 48
    bins: int = 16

    @property
    def strides(self) -> tuple[int, int, int]:
        """Pixels per cell of the three feature maps the head reads."""
        return (8, 16, 32)


class Raw(NamedTuple):
    """What the head says before decoding, over all N cells of the three maps (fine to coarse, row by row).

    boxes: logits of the side distributions, [B, 4 * bins, N]; sides in the order left, top, right, bottom.
    classes: class logits, [B, C, N].
    """

    boxes: Tensor
    classes: Tensor


class ConvNormAct(nn.Module):
    """Convolution, batch norm, SiLU: [B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.norm(self.conv(x)))
        return out


class Bottleneck(nn.Module):
    """Two 3x3 convolutions, with a shortcut around them where asked: keeps [B, width, H, W]."""

    def __init__(self, width: int, shortcut: bool) -> None:
        super().__init__()
        self.first = ConvNormAct(width, width, 3)
        self.second = ConvNormAct(width, width, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x))
        return x + out if self.shortcut else out


class C2f(nn.Module):
    """Splits the channels, runs a chain of bottlenecks on one half and mixes every link of the chain at the
    end.
    """

    def __init__(self, inputs: int, outputs: int, depth: int, shortcut: bool) -> None:
        super().__init__()
        half = outputs // 2
        self.enter = ConvNormAct(inputs, 2 * half)
        self.chain = nn.ModuleList(Bottleneck(half, shortcut) for _ in range(depth))
        self.leave = ConvNormAct((2 + depth) * half, outputs)

    def forward(self, x: Tensor) -> Tensor:
        links = list(self.enter(x).chunk(2, dim=1))
        for block in self.chain:
            links.append(block(links[-1]))
        out: Tensor = self.leave(torch.cat(links, dim=1))
        return out


class SPPF(nn.Module):
    """Three 5x5 max-pools in a row, concatenated: sees windows of 5, 9 and 13 cells for the price of small
    ones.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = ConvNormAct(width, width // 2)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.leave = ConvNormAct(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        views = [self.enter(x)]
        for _ in range(3):
            views.append(self.pool(views[-1]))
        out: Tensor = self.leave(torch.cat(views, dim=1))
        return out


class Backbone(nn.Module):
    """[B, 3, S, S] -> feature maps at strides 8, 16 and 32."""

    def __init__(self, spec: Architecture) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = spec.channels
        d2, d3, d4, d5 = spec.depths
        self.stem = ConvNormAct(3, c1, 3, 2)
        self.down2 = ConvNormAct(c1, c2, 3, 2)
        self.stage2 = C2f(c2, c2, d2, shortcut=True)
        self.down3 = ConvNormAct(c2, c3, 3, 2)
        self.stage3 = C2f(c3, c3, d3, shortcut=True)
        self.down4 = ConvNormAct(c3, c4, 3, 2)
        self.stage4 = C2f(c4, c4, d4, shortcut=True)
        self.down5 = ConvNormAct(c4, c5, 3, 2)
        self.stage5 = C2f(c5, c5, d5, shortcut=True)
        self.pyramid = SPPF(c5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.stage2(self.down2(self.stem(images)))
        p3 = self.stage3(self.down3(x))
        p4 = self.stage4(self.down4(p3))
        p5 = self.pyramid(self.stage5(self.down5(p4)))
        return p3, p4, p5


class Neck(nn.Module):
    """Passes meaning down from coarse to fine maps, then places back up; shapes stay as the backbone's."""

    def __init__(self, spec: Architecture) -> None:
        super().__init__()
        _, _, c3, c4, c5 = spec.channels
        depth = spec.neck_depth
        self.up = nn.Upsample(scale_factor=2.0, mode="nearest")
        self.merge4 = C2f(c5 + c4, c4, depth, shortcut=False)
        self.merge3 = C2f(c4 + c3, c3, depth, shortcut=False)
        self.down3 = ConvNormAct(c3, c3, 3, 2)
        self.back4 = C2f(c3 + c4, c4, depth, shortcut=False)
        self.down4 = ConvNormAct(c4, c4, 3, 2)
        self.back5 = C2f(c4 + c5, c5, depth, shortcut=False)

    def forward(self, p3: Tensor, p4: Tensor, p5: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t4 = self.merge4(torch.cat([self.up(p5), p4], dim=1))
        n3 = self.merge3(torch.cat([self.up(t4), p3], dim=1))
        n4 = self.back4(torch.cat([self.down3(n3), t4], dim=1))
        n5 = self.back5(torch.cat([self.down4(n4), p5], dim=1))
        return n3, n4, n5


def _branch(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        ConvNormAct(inputs, width, 3), ConvNormAct(width, width, 3), nn.Conv2d(width, outputs, 1)
    )


def cells(spec: Architecture) -> tuple[Tensor, Tensor]:
    """Centres of all cells, [1, 2, N] as x, y in strides of their own map, and those strides in pixels, [1,
    1, N].
    """
    centres, strides = [], []
    for stride in spec.strides:
        side = torch.arange(spec.size // stride, dtype=torch.float32) + 0.5
        y, x = torch.meshgrid(side, side, indexing="ij")
        centres.append(torch.stack([x.flatten(), y.flatten()]))
        strides.append(torch.full((1, x.numel()), float(stride)))
    return torch.cat(centres, dim=1)[None], torch.cat(strides, dim=1)[None]


class Head(nn.Module):
    """Boxes and classes from two branches per map; keeps the cells' places as constant buffers."""

    # Not persistent: they follow from the sizes, so a weights file need not (and cannot wrongly) hold them.
    centres: Tensor
    strides: Tensor
    ramp: Tensor

    def __init__(self, spec: Architecture) -> None:
        super().__init__()
        self.bins = spec.bins
        widths = spec.channels[2:]
        self.boxes = nn.ModuleList(_branch(c, spec.box_width, 4 * spec.bins) for c in widths)
        self.classes = nn.ModuleList(_branch(c, spec.class_width, spec.classes) for c in widths)
        centres, strides = cells(spec)
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("strides", strides, persistent=False)
        ramp = torch.arange(spec.bins, dtype=torch.float32).reshape(1, spec.bins, 1, 1)
        self.register_buffer("ramp", ramp, persistent=False)

    def raw(self, maps: tuple[Tensor, Tensor, Tensor]) -> Raw:
        """Logits over all cells."""
        boxes = [branch(x).flatten(2) for branch, x in zip(self.boxes, maps, strict=True)]
        classes = [branch(x).flatten(2) for branch, x in zip(self.classes, maps, strict=True)]
        return Raw(torch.cat(boxes, dim=2), torch.cat(classes, dim=2))

    def sides(self, boxes: Tensor) -> Tensor:
        """[B, 4 * bins, N] logits -> [B, 4, N] distances to the four sides, in strides (GFL, eq. 4)."""
        batch, _, count = boxes.shape
        chances = boxes.reshape(batch, 4, self.bins, count).transpose(1, 2).softmax(dim=1)
        # The mean over the bins, written as a 1x1 convolution with the weights 0, 1, 2, …: NPUs run that
        # well.
        return functional.conv2d(chances, self.ramp).reshape(batch, 4, count)

    def forward(self, maps: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        raw = self.raw(maps)
        near, far = self.sides(raw.boxes).chunk(2, dim=1)
        top_left, bottom_right = self.centres - near, self.centres + far
        centre = (top_left + bottom_right) / 2
        boxes = torch.cat([centre, bottom_right - top_left], dim=1) * self.strides
        return torch.cat([boxes, raw.classes.sigmoid()], dim=1)


class Detector(nn.Module):
    """The whole network. ``forward`` decodes, as an export needs it; ``raw`` stops at the logits, for the
    loss.
    """

    def __init__(self, spec: Architecture | None = None) -> None:
        super().__init__()
        self.spec = spec if spec is not None else Architecture()
        self.backbone = Backbone(self.spec)
        self.neck = Neck(self.spec)
        self.head = Head(self.spec)
        self._start_rare()

    def _start_rare(self) -> None:
        """Biases such that a fresh network finds nothing; else the first steps only unlearn a flood of boxes.

        The class prior follows RetinaNet (arXiv:1708.02002, section 4.1): a few true cells among a map's
        cells.
        """
        for stride, boxes, classes in zip(self.spec.strides, self.head.boxes, self.head.classes, strict=True):
            prior = min(0.02, 5 / self.spec.classes / (self.spec.size / stride) ** 2)
            for branch, bias in ((boxes, 1.0), (classes, -math.log((1 - prior) / prior))):
                assert isinstance(branch, nn.Sequential)
                last = branch[-1]
                assert isinstance(last, nn.Conv2d)
                assert last.bias is not None
                nn.init.constant_(last.bias, bias)

    def raw(self, images: Tensor) -> Raw:
        """[B, 3, S, S] in 0..1 -> logits over all cells."""
        return self.head.raw(self.neck(*self.backbone(images)))

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] in 0..1 -> [B, 4 + C, N]: centre x, centre y, width, height in input pixels, then
        scores.
        """
        out: Tensor = self.head(self.neck(*self.backbone(images)))
        return out
