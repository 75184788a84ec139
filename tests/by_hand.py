"""A network so small that its scores can be worked out by hand."""

import torch
from torch import nn

from blockswap_models.nets.blocks import ResidualBlock


class Half(ResidualBlock):
    branch_end = "conv"

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.constant_(self.conv.weight, 0.5)

    def forward(self, x):
        return x + self.conv(x)


class MeanLogits(nn.Module):
    """Logits are (m, -m), where m is the mean of the pixels after one block that adds half of each pixel to it."""

    def __init__(self):
        super().__init__()
        self.block = Half()

    def forward(self, x):
        mean = self.block(x).mean(dim=(1, 2, 3))
        return torch.stack([mean, -mean], dim=1)
