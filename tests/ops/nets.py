"""Small networks in the ways in which people write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block with in-place activations and an in-place sum."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.down(x)
        return self.relu(y)


class Residual(nn.Module):
    """A ResNet in small."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.blocks = nn.Sequential(Block(8, 8, 1), Block(8, 16, 2))
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.pool(self.stem(x)))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Inverted(nn.Module):
    """A MobileNet v3 in small: depthwise, squeeze and excite, hard activations, a linear bottleneck."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(3, 16, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.depth = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.SiLU(), nn.Conv2d(4, 16, 1))
        self.project = nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.drop, self.fc = nn.Dropout(0.2), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depth(self.expand(x))
        x = self.project(x * F.hardsigmoid(self.squeeze(x)))
        return self.fc(self.drop(x.mean([2, 3])))


class Branches(nn.Module):
    """An Inception or DenseNet in small, returning what a detector returns: a dict of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.a, self.b, self.c = (
            nn.Conv2d(3, 4, 1),
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Conv2d(3, 4, (1, 7), padding=(0, 3)),
        )
        self.up = nn.ConvTranspose2d(15, 6, 4, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = F.relu(self.norm(x))
        y = torch.cat([self.a(y), F.leaky_relu(self.b(y), 0.2), self.c(y), F.avg_pool2d(x, 3, 1, 1)], 1)
        left, right = y.chunk(2, 1) if y.shape[1] % 2 == 0 else (y[:, :7], y[:, 7:])
        return {"up": torch.sigmoid(self.up(y)), "pair": torch.cat([right, left], 1)}


class Tokens(nn.Module):
    """A vision transformer in small; attention runs on torch's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(1, 1, 16))
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.mlp = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        q, k, v = self.qkv(self.norm(x)).reshape(x.shape[0], x.shape[1], 3, 2, 8).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + self.out(y)
        return (x + self.mlp(x))[:, 0]


class Folded(nn.Module):
    """What torch runs on views of the input and of a weight, before and after a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.table = nn.Conv2d(3, 4, 3, padding=1), nn.Parameter(torch.randn(2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        flipped = torch.flip(x[:, :, 1:], [3])
        y = self.conv(torch.cumsum(flipped, 3) * 0.1)
        return torch.cumsum(y, 2) * torch.flip(self.table.transpose(0, 2)[:, 0, :1], [0]).view(1, -1, 1, 1)


NETS: dict[str, type[nn.Module]] = {
    "residual": Residual, "inverted": Inverted, "branches": Branches, "tokens": Tokens,
}  # fmt: skip


def ready(name: str, seed: int = 0) -> nn.Module:
    """The network with statistics that batch norms could have after training, in evaluation mode."""
    torch.manual_seed(seed)
    net = NETS[name]()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return net.eval()
