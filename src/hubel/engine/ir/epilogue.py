"""The end of a kernel: what is done to float32 sums on their way into the output.

Every kernel ends in the same way, whatever the output is stored as and whatever follows the convolution: an `Ending`
says which, `Channels` are its operands from some output channel on, and a `Finish` does it to values:

    ending = Ending(pointer_to("bfloat16"), epilogue)
    channels = ending.of_call(f, args)                          in the kernel
    f.call(g, ..., *channels.further(row).arguments)            to a function with `ending.parameters`
    finish = ending.given(g).load([lanes])                      there, before any loop over pixels
    g.store(finish(sums, place), place)

An ending without an epilogue adds the bias, and its operands are the bias alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hubel.engine.epilogue import Epilogue
from hubel.engine.ir.activation import activated
from hubel.engine.ir.function import F32, I64, Function, Value, vector_of
from hubel.engine.ir.storage import PTR, Pointer, stored_as

# Activations of a few instructions.
SHORT = ("", "relu", "relu6", "leaky_relu", "hardswish")


@dataclass(frozen=True)
class Ending:
    """stored: how the output and the bias are stored. epilogue: what is done to the sums."""

    stored: Pointer = PTR
    epilogue: Epilogue | None = None

    @property
    def plain(self) -> bool:
        """Whether sums are stored as they are, a bias added: partial sums may then lie in the output."""
        return self.stored is PTR and self.epilogue is None

    @property
    def short(self) -> bool:
        """Whether a register tile may do it to its sums, which are stored as float32: a few instructions a vector."""
        return self.stored is PTR and (self.epilogue is None or self.epilogue.activation in SHORT)

    @property
    def local(self) -> bool:
        """Whether nothing but the channel's own operands is needed to finish a sum."""
        return self.epilogue is None or not self.epilogue.residual

    @property
    def name(self) -> str:
        """What it adds to the names of kernels."""
        return f"_{self.epilogue}" if self.epilogue else ""

    @property
    def parameters(self) -> list[tuple[str, str]]:
        """Of functions that are handed the operands."""
        return [("bias", self.stored)] if self.epilogue is None else [("operands", PTR), ("channel", I64)]

    def of_call(self, f: Function, args: Value) -> Channels:
        """The operands of a kernel's call, from the first output channel on."""
        if self.epilogue is None:
            return Channels(f, self, (f.word(args, 2, "bias", self.stored),))
        return Channels(f, self, (f.word(args, 2, "operands", PTR), f.constant(0)))

    def given(self, f: Function) -> Channels:
        """The operands that a function with these `parameters` was handed."""
        return Channels(f, self, tuple(f.arg(name) for name, _ in self.parameters))


PLAIN = Ending()


@dataclass(frozen=True)
class Channels:
    """Operands from one output channel on: (bias or null), or (operand words, number of the channel)."""

    f: Function
    ending: Ending
    arguments: tuple[Value, ...]

    def further(self, rows: Value | int) -> Channels:
        """Those so many channels further."""
        f, (first, *channel) = self.f, self.arguments
        if channel:
            return Channels(f, self.ending, (first, channel[0] + rows))
        return Channels(f, self.ending, (f.select(self.given, first + rows, first, "bias_at"),))

    @property
    def given(self) -> Value:
        """Whether there is a bias, where it is all there may be."""
        return _given(self.f, self.arguments[0])

    def bias(self) -> Value:
        """The bias of the first of these channels, −0 if there is none: adding it changes no number, not even −0."""
        f, (bias, *channel) = self.f, self.arguments
        f.store(f.constant(-0.0, F32), nothing := f.room(self.ending.stored, "nothing"))
        if channel:
            bias = f.word(bias, 0, "bias", self.ending.stored)
        there = bias + channel[0] if channel else bias
        return f.load(f.select(_given(f, bias), there, nothing, "addend"), F32, "bias")

    def bias_at(self) -> tuple[Value, Value]:
        """(where the biases lie from the first of these channels on, whether there are any)"""
        f, (bias, *channel) = self.f, self.arguments
        if not channel:
            return bias, _given(f, bias)
        bias = f.word(bias, 0, "bias", self.ending.stored)
        return bias + channel[0], _given(f, bias)

    def load_lanes(self, lanes: int, bias: bool = False) -> Finish:
        """What is done to vectors whose lanes are these channels, from the first on.

        lanes: 1 is a number. bias: whether it is still to be added.
        """
        f, epilogue, (block, *channel) = self.f, self.ending.epilogue, self.arguments
        type_ = vector_of(lanes) if lanes > 1 else F32
        vectors = {}
        if bias:
            there, given = self.bias_at()
            f.store(f.constant(-0.0, type_), nothing := f.room(self.ending.stored, "nothing", lanes))
            vectors["bias"] = f.load(f.select(given, there, nothing, "addends"), type_, "bias")
        if epilogue and epilogue.scale:
            for i, name in ((1, "scale"), (2, "shift")):
                vectors[name] = f.load(f.word(block, i, name, PTR) + channel[0], type_, name)
        residual = f.word(block, 3, "residual") if epilogue and epilogue.residual else None
        return Finish(f, epilogue, {lanes: vectors}, residual)

    def load(self, widths: Sequence[int], bias: bool = True) -> Finish:
        """What is done to values of the first of these channels, that have one of these widths.

        bias: whether it is still to be added.
        """
        f, epilogue, (block, *channel) = self.f, self.ending.epilogue, self.arguments
        scalars = {"bias": self.bias()} if bias else {}
        if epilogue and epilogue.scale:
            for i, name in ((1, "scale"), (2, "shift")):
                scalars[name] = f.load(f.word(block, i, name, PTR) + channel[0], F32, name)
        splats = {
            width: {n: s if width == 1 else f.splat(s, width, f"{n}_{width}") for n, s in scalars.items()}
            for width in widths
        }
        residual = f.word(block, 3, "residual") if epilogue and epilogue.residual else None
        return Finish(f, epilogue, splats, residual)


@dataclass(frozen=True)
class Finish:
    """splats: by the width of values, bias, scale and shift in all lanes. residual: how many bytes it lies behind the
    output.
    """

    f: Function
    epilogue: Epilogue | None
    splats: dict[int, dict[str, Value]]
    residual: Value | None

    def __call__(self, value: Value, place: Value, mask: Value | None = None) -> Value:
        """The float32 numbers to be stored at `place`; with a mask, nothing is read outside of it."""
        f, epilogue = self.f, self.epilogue
        width = 1 if value.type == F32 else int(value.type[1:].split()[0])
        operands = self.splats[width]
        if "bias" in operands:
            value = value + operands["bias"]
        if "scale" in operands:
            value = f.fma(value, operands["scale"], operands["shift"], "scaled")
        if self.residual:
            # Another tensor: nothing is known of where it lies but the distance.
            text = f"getelementptr i8, ptr {place.text}, i64 {self.residual.text}"
            beside = f._emit(stored_as(place), text, "beside")
            if mask is None:
                value = value + f.load(beside, value.type, "residual")
            else:
                value = value + f.load_masked(beside, mask, width, "residual")
        if epilogue and epilogue.activation:
            value = activated(f, epilogue.activation, epilogue.slope, value)
        return value


def _given(f: Function, pointer: Value) -> Value:
    return f.compare("ne", pointer, Value(f, PTR, "null"))
