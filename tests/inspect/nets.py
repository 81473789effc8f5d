"""Networks built by hand, whose answers are known; five styles of writing one that every analysis must take."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Functional(nn.Module):
    """Functional convolution and ReLU, with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3) / 5)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(F.conv2d(x, self.kernel, padding=1)).mean((2, 3)))


class Residual(nn.Module):
    """Batch norms, in-place ReLUs, an in-place addition, as torchvision's blocks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6)
        self.conv1, self.bn1 = nn.Conv2d(6, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn0(self.stem(x)))
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.head(self.relu(out).mean((2, 3)))


class Reused(nn.Module):
    """One convolution, twice; answers with a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu_(self.conv(F.gelu(self.conv(x))))
        return {"scores": self.head(x.mean((2, 3))), "maps": x}


def plain() -> nn.Module:
    """No batch norm, modules only, depthwise and 1×1, a bounded activation."""
    layers = [
        nn.Conv2d(3, 6, 3),
        nn.ReLU6(),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.SiLU(),
        nn.Conv2d(6, 4, 1),
        nn.ReLU(True),
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def branched() -> nn.Module:
    """Two branches of different depth, dilation, concatenation, a gate."""

    class Branched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=2, dilation=2)
            self.c, self.squeeze = nn.Conv2d(8, 6, 3, 2, 1), nn.Conv2d(6, 6, 1)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([F.relu(self.a(x)), F.max_pool2d(F.relu(self.b(x)), 3, 1, 1)], 1)
            x = F.hardswish(self.c(x))
            return self.head((x * torch.sigmoid(self.squeeze(x.mean((2, 3), keepdim=True)))).mean((2, 3)))

    return Branched()


NETS: dict[str, Callable[[], nn.Module]] = {
    "functional": Functional,
    "residual": Residual,
    "reused": Reused,
    "plain": plain,
    "branched": branched,
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETS[name]()


def state_of(net: nn.Module) -> tuple:
    """Everything that an analysis must leave as it was, to be compared."""
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in net.modules())
    numbers = {key: value.clone() for key, value in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    grads = [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in net.parameters()]
    forwards = ["forward" in vars(m) for m in net.modules()]
    return hooks, modes, forwards, grads, numbers, torch.random.get_rng_state(), torch.is_grad_enabled()


def same_state(one: tuple, two: tuple) -> bool:
    plain = all(a == b for a, b in zip(one[:3], two[:3], strict=True)) and one[6] == two[6]
    grads = all(
        a[0] == b[0] and (a[1] is b[1] is None or torch.equal(a[1], b[1])) for a, b in zip(one[3], two[3], strict=True)
    )
    numbers = one[4].keys() == two[4].keys() and all(torch.equal(one[4][k], two[4][k]) for k in one[4])
    return plain and grads and numbers and torch.equal(one[5], two[5])
