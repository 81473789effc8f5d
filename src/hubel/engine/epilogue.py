"""What follows a convolution and is done to its sums before they are stored: one pass over the output instead of four.

    y = activation((conv + bias) · scale + shift + residual)

scale and shift are float32, a number for each channel of the output; the residual is a tensor like the output: its
shape, strides and dtype. Everything is computed in float32 and rounded once. Its text follows a problem's (`problem`):

    /scale+residual+relu     /leaky_relu0.1     each part where it is asked for, in this order

A kernel with an epilogue takes, in the place of the bias, the address of four words (`operand_words`).
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass

from hubel.errors import SpecError, unknown

# As torch defines them: gelu is the erf form, gelu_tanh torch's approximate="tanh".
ACTIVATIONS = ("relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu", "gelu_tanh", "sigmoid", "tanh")


@dataclass(frozen=True)
class Epilogue:
    """scale: whether there are scale and shift. slope: leaky_relu's factor of negative numbers, 0.01 as in torch."""

    scale: bool = False
    residual: bool = False
    activation: str = ""
    slope: float = 0.01

    def __post_init__(self) -> None:
        if self.activation and self.activation not in ACTIVATIONS:
            raise unknown("activation", self.activation, ACTIVATIONS)
        if not (self.scale or self.residual or self.activation):
            raise SpecError("an epilogue does something. Received: none of its parts. Use None for no epilogue.")

    def __str__(self) -> str:
        activation = self.activation
        if activation == "leaky_relu" and self.slope != 0.01:
            activation += repr(float(self.slope))
        parts = ["scale"] * self.scale + ["residual"] * self.residual + [activation] * bool(activation)
        return "+".join(parts)

    @classmethod
    def parse(cls, text: str) -> Epilogue:
        """The epilogue that `text` names: `parse(str(epilogue)) == epilogue`. Raises `SpecError`."""
        parts = text.split("+")
        scale, residual = "scale" in parts, "residual" in parts
        rest = [part for part in parts if part not in ("scale", "residual")]
        slope = re.fullmatch(r"leaky_relu(-?[0-9][0-9.e-]*)", rest[0]) if rest else None
        activation = "leaky_relu" if slope else rest[0] if rest else ""
        epilogue = cls(scale, residual, activation, float(slope[1]) if slope else 0.01)
        if str(epilogue) != text:
            raise SpecError(
                f'an epilogue is scale, residual and one activation, in this order. Received: "{text}". Write for '
                f'example "{epilogue}".'
            )
        return epilogue


def operand_words(bias: int, scale: int, shift: int, residual: int, output: int) -> ctypes.Array[ctypes.c_int64]:
    """What a kernel with an epilogue is given: addresses of bias (0 for none), scale and shift, and how many bytes the
    residual lies behind the output, in memory of its own: partial sums may lie in the output's. The caller keeps it
    until the kernel is done.
    """
    return (ctypes.c_int64 * 4)(bias, scale, shift, residual - output)
