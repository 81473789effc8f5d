"""torch's own samples of its convolution operators, and how results are judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db

OPS = {op.name.removeprefix("nn.functional."): op for op in op_db if op.name.startswith("nn.functional.conv")}


@dataclass
class Call:
    """One call of a functional convolution: `run()` gives its output and the gradients of its tensors.

    tensors: input, weight and (perhaps) bias.
    """

    name: str
    tensors: tuple[Tensor, ...]
    rest: dict[str, Any]

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(str(tuple(t.shape)) for t in self.tensors)}, {self.rest})"

    def function(self) -> Callable[..., Tensor]:
        return getattr(torch.nn.functional, self.name)

    def run(self, change: Callable[[Tensor], Tensor] = lambda t: t, seed: int = 0) -> list[Tensor]:
        """Output and gradients, from `change`d tensors; the output's gradient is drawn from N(0, 1)."""
        leaves = [change(t.detach()).requires_grad_() for t in self.tensors]
        output = self.function()(*leaves, **self.rest)
        if not output.numel():
            return [output]
        gradient = change(torch.randn(output.shape, generator=torch.Generator().manual_seed(seed)))
        return [output, *torch.autograd.grad(output, leaves, gradient)]

    def expected_size(self) -> list[float]:
        """The norms that output and gradients would have if the signs of their terms were random.

        The accuracy levels speak of random data; where a sample's terms cancel by chance, its own norm is no measure.
        """
        squares = [t.detach().double().square().requires_grad_() for t in self.tensors]
        output = self.function()(*squares, **self.rest)
        gradients = torch.autograd.grad(output, squares, torch.ones_like(output))
        # The gradient of the sum of squares holds Σ w² or Σ x², times dy², which is 1 on average.
        return [float(t.detach().abs().sum().sqrt()) for t in (output, *gradients)]

    def terms(self) -> list[int]:
        """K of output and gradients: how many products each of their numbers is the sum of."""
        ones = [torch.ones_like(t, dtype=torch.float64).requires_grad_() for t in self.tensors]
        output = self.function()(*ones, **self.rest)
        gradients = torch.autograd.grad(output, ones, torch.ones_like(output))
        return [int(t.detach().max()) for t in (output, *gradients)]


def calls(name: str, dtype: torch.dtype = torch.float32) -> Iterator[Call]:
    """Every sample of torch's OpInfo for one function, as calls."""
    op = OPS[name]
    for sample in op.sample_inputs("cpu", dtype, requires_grad=dtype.is_floating_point or dtype.is_complex):
        names = ("weight", "bias", "stride", "padding", "dilation", "groups")
        if "transpose" in name:
            names = ("weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
        given: dict[str, Any] = {**dict(zip(names, sample.args, strict=False)), **sample.kwargs}
        tensors = (sample.input, given.pop("weight"), given.pop("bias", None))
        yield Call(name, tuple(t for t in tensors if t is not None), given)


def unit(terms: int) -> float:
    """u of DESIGN §3.2."""
    return 3e-7 * max(1.0, (terms / 2304) ** 0.5)
