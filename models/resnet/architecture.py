"""ResNet for 32 x 32 images (He et al., arXiv:1512.03385, section 4.2): 6n + 2 layers in three stages.

One difference from the paper: where the shape changes, the shortcut is a 1 x 1 convolution (its option B)
instead of zero padding, so that every shortcut of the exported graph is an operator that a chip knows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut; [N, width_in, H, W] to [N, width_out, H/stride, W/stride]."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width_out)
        self.shortcut: nn.Module = nn.Identity()
        if width_in != width_out or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width_in, width_out, 1, stride, bias=False), nn.BatchNorm2d(width_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Images [N, 3, 32, 32], normalised, to logits [N, classes].

    Args:
        depth: 6n + 2: 20, 32, 44, 56 …
        width: Channels of the first stage; the others have twice and four times as many.
        classes: Logits.
    """

    def __init__(self, depth: int = 56, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        count, rest = divmod(depth - 2, 6)
        if rest or count < 1:
            raise ValueError(f"a depth of {depth} is not 6n + 2")
        self.stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        blocks, before = [], width
        for stage in range(3):
            after = width * 2**stage
            for index in range(count):
                blocks.append(Block(before, after, 2 if stage and index == 0 else 1))
                before = after
        self.blocks = nn.Sequential(*blocks)
        self.classify = nn.Linear(before, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.norm(self.stem(images))))
        logits: Tensor = self.classify(x.mean(dim=(2, 3)))
        return logits
