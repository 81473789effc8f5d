"""The sizes of one convolution, said once, before anyone asks how, and the string that names them: `ConvSpec`.

The grammar of its text, letters in any order, each at most once:

    n1 c64 o128 i56x56 k3x3 s1 p1 d1 g1          (written without the blanks)

    n  batch           1 if omitted        s  stride      1 if omitted
    c  in_channels                         p  padding     0 if omitted, on both sides
    o  out_channels                        d  dilation    1 if omitted
    i  input size, one number a dimension  g  groups      1 if omitted
    k  kernel size

For k, s, p and d one number stands for all dimensions. `str` always writes n c o i k s p, and d and g where they
are not 1, so equal specs have equal texts.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from hubel.errors import SpecError, UnsupportedError

# One number for every dimension, or one a dimension.
Sizes: TypeAlias = int | Sequence[int]

# In a tensor: beyond, its bytes are no 64-bit number, with room for sums of a few such.
MOST_NUMBERS = 2**58


@dataclass(frozen=True, init=False)
class ConvSpec:
    """The sizes of a 1-, 2- or 3-D convolution (cross-correlation, zero padding, as torch defines it).

    Every per-dimension field is a tuple of `ndim` integers, outermost dimension first; the constructor accepts one
    number for all of them, and "same" or "valid" as padding. Raises `SpecError` if no such convolution exists.
    """

    batch: int
    in_channels: int
    out_channels: int
    input_size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __init__(
        self,
        batch: int,
        in_channels: int,
        out_channels: int,
        input_size: Sequence[int],
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
    ) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)  # the class is frozen: this is the only place that writes

        put("batch", _count("batch", batch, at_least=0))
        put("in_channels", _count("in_channels", in_channels))
        put("out_channels", _count("out_channels", out_channels))
        put("groups", _count("groups", groups))
        put("input_size", _input_size(input_size))
        put("kernel_size", _sizes("kernel_size", kernel_size, self.ndim))
        put("stride", _sizes("stride", stride, self.ndim))
        put("dilation", _sizes("dilation", dilation, self.ndim))
        if isinstance(padding, str):
            put("padding", _named_padding(padding, self.kernel_size, self.stride, self.dilation))
        else:
            put("padding", _sizes("padding", padding, self.ndim, at_least=0))
        self._check()

    def _check(self) -> None:
        for name, channels in (("in_channels", self.in_channels), ("out_channels", self.out_channels)):
            if channels % self.groups:
                raise SpecError(
                    f"{name} must be divisible by groups. Received: {name}={channels}, groups={self.groups}. "
                    f"Choose groups from the divisors of {name}."
                )
        if any(size < 1 for size in self.output_size):
            raise SpecError(
                "the kernel must fit into the padded input: input_size + 2 * padding must be at least "
                "dilation * (kernel_size - 1) + 1 in every dimension. "
                f"Received: input_size={self.input_size}, kernel_size={self.kernel_size}, stride={self.stride}, "
                f"padding={self.padding}, dilation={self.dilation}, which gives output_size={self.output_size}. "
                "Use a larger input, more padding, or a smaller kernel or dilation."
            )

        for name in ("input", "weight", "output"):
            shape = getattr(self, f"{name}_shape")
            if prod(shape) > MOST_NUMBERS:
                raise SpecError(
                    f"a tensor's bytes must be countable in 64 bits. Received: {name} of shape {shape}, that is "
                    f"{prod(shape):.1e} numbers. Use smaller sizes."
                )

    @classmethod
    def for_transposed(
        cls,
        batch: int,
        in_channels: int,
        out_channels: int,
        input_size: Sequence[int],
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes = 0,
        output_padding: Sizes = 0,
        dilation: Sizes = 1,
        groups: int = 1,
    ) -> ConvSpec:
        """The convolution whose input gradient is the given transposed convolution.

        The arguments describe the transposed convolution. In the result the roles are exchanged: `output_shape`
        is what the transposed convolution reads, `input_shape` what it writes, and `weight_shape` is torch's for
        transposed weights, (in_channels, out_channels // groups, *kernel_size).
        Raises `SpecError` if it cannot exist and `UnsupportedError` if output_padding >= stride, which torch allows
        up to the dilation: its last outputs lie beyond the input of any such convolution.
        """
        small = _input_size(input_size)
        ndim = len(small)
        kernel = _sizes("kernel_size", kernel_size, ndim)
        steps = _sizes("stride", stride, ndim)
        pads = _sizes("padding", padding, ndim, at_least=0)
        extra = _sizes("output_padding", output_padding, ndim, at_least=0)
        holes = _sizes("dilation", dilation, ndim)

        received = f"Received: output_padding={extra}, stride={steps}, dilation={holes}."
        if any(e >= s for e, s in zip(extra, steps, strict=True)):
            if any(e >= max(s, d) for e, s, d in zip(extra, steps, holes, strict=True)):
                raise SpecError(f"output_padding must be less than stride or dilation. {received} Use a smaller one.")
            raise UnsupportedError(f"Hubel needs output_padding less than stride. {received} Use torch's own kernel.")
        large = tuple(
            (i - 1) * s - 2 * p + d * (k - 1) + 1 + e
            for i, k, s, p, e, d in zip(small, kernel, steps, pads, extra, holes, strict=True)
        )
        if any(size < 1 for size in large):
            raise SpecError(
                "a transposed convolution must have an output: (input_size - 1) * stride - 2 * padding + dilation * "
                f"(kernel_size - 1) + output_padding + 1 must be at least 1. Received: input_size={small}, "
                f"kernel_size={kernel}, stride={steps}, padding={pads}, output_padding={extra}, dilation={holes}, "
                f"which gives output_size={large}. Use less padding or a larger input."
            )
        return cls(batch, out_channels, in_channels, large, kernel, steps, pads, holes, groups)

    @property
    def ndim(self) -> int:
        """Spatial dimensions: 1, 2 or 3."""
        return len(self.input_size)

    @property
    def output_size(self) -> tuple[int, ...]:
        """Spatial sizes of the output: how often the dilated kernel fits, stepping by the stride."""
        return tuple(
            (i + 2 * p - d * (k - 1) - 1) // s + 1
            for i, k, s, p, d in zip(
                self.input_size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True
            )
        )

    @property
    def taps(self) -> int:
        """Weights of one slice: the product of the kernel's sizes."""
        return prod(self.kernel_size)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(batch, in_channels, *input_size)"""
        return (self.batch, self.in_channels, *self.input_size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(out_channels, in_channels // groups, *kernel_size)"""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(batch, out_channels, *output_size)"""
        return (self.batch, self.out_channels, *self.output_size)

    @property
    def parameters(self) -> int:
        """Weights, without the bias."""
        return prod(self.weight_shape)

    @property
    def macs(self) -> int:
        """Multiply-adds of the plain loops, those on the padding counted; the same in every direction."""
        return prod(self.output_shape) * self.taps * (self.in_channels // self.groups)

    @property
    def flops(self) -> int:
        """Two a multiply-add."""
        return 2 * self.macs

    def bytes(self, itemsize: int = 4) -> int:
        """The least memory traffic: input, weights and output touched once, `itemsize` bytes an element."""
        return itemsize * (prod(self.input_shape) + self.parameters + prod(self.output_shape))

    def __str__(self) -> str:
        def axes(sizes: tuple[int, ...]) -> str:
            return "x".join(map(str, sizes))

        def short(sizes: tuple[int, ...]) -> str:
            return str(sizes[0]) if len(set(sizes)) == 1 else axes(sizes)

        text = f"n{self.batch}c{self.in_channels}o{self.out_channels}i{axes(self.input_size)}k{axes(self.kernel_size)}"
        text += f"s{short(self.stride)}p{short(self.padding)}"
        if set(self.dilation) != {1}:
            text += f"d{short(self.dilation)}"
        if self.groups != 1:
            text += f"g{self.groups}"
        return text

    @classmethod
    def parse(cls, text: str) -> ConvSpec:
        """The spec that `text` names (grammar above): `parse(str(spec)) == spec`. Raises `SpecError`."""
        fields = _FIELD.findall(text)
        if not fields or "".join(letter + sizes for letter, sizes in fields) != text:
            raise _bad_text(text, "it is not a run of letters, each followed by its sizes")
        given: dict[str, tuple[int, ...]] = {}
        for letter, sizes in fields:
            if letter not in _LETTERS:
                raise _bad_text(text, f'the letter "{letter}" means nothing')
            if letter in given:
                raise _bad_text(text, f'"{letter}" is given twice')
            given[letter] = tuple(int(size) for size in sizes.split("x"))
            if letter in "ncog" and len(given[letter]) > 1:
                raise _bad_text(text, f'"{letter}" ({_LETTERS[letter]}) takes one number')
        missing = [f'"{letter}" ({_LETTERS[letter]})' for letter in "coik" if letter not in given]
        if missing:
            raise _bad_text(text, f"{', '.join(missing)} must be given")

        def one(letter: str) -> int:
            return given.get(letter, (1,))[0]

        def axes(letter: str, default: int) -> Sizes:
            sizes = given.get(letter, (default,))
            return sizes[0] if len(sizes) == 1 else sizes

        try:
            sizes = given["i"], axes("k", 1), axes("s", 1), axes("p", 0), axes("d", 1)
            return cls(one("n"), one("c"), one("o"), *sizes, groups=one("g"))
        except SpecError as error:
            raise SpecError(f'"{text}": {error}') from None


# The letters of the grammar and the arguments of ConvSpec that they set.
_LETTERS = {
    "n": "batch", "c": "in_channels", "o": "out_channels", "i": "input_size",
    "k": "kernel_size", "s": "stride", "p": "padding", "d": "dilation", "g": "groups",
}  # fmt: skip
# "x" separates sizes and can be no letter; 18 digits are more than any size that fits 64 bits needs.
_FIELD = re.compile(r"([a-wyz])([0-9]{1,18}(?:x[0-9]{1,18})*)")


def _count(name: str, value: object, at_least: int = 1) -> int:
    """`value` as an int, from any integer type (numpy's too)."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise SpecError(
            f"{name} must be an integer. Received: {value!r} of type {type(value).__name__}. Pass a whole number."
        ) from None
    if number < at_least:
        raise SpecError(f"{name} must be at least {at_least}. Received: {name}={number}. Use a larger number.")
    return number


def _sizes(name: str, value: object, ndim: int, at_least: int = 1) -> tuple[int, ...]:
    """`value`, one integer or `ndim` of them, as a tuple of `ndim`."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return (_count(name, value, at_least),) * ndim
    if len(value) != ndim:
        raise SpecError(
            f"{name} must be one integer or one for each of the input's {ndim} dimensions. Received: {name}={value}. "
            f"Pass {ndim} of them."
        )
    return tuple(_count(f"{name}[{axis}]", size, at_least) for axis, size in enumerate(value))


def _input_size(value: object) -> tuple[int, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not 1 <= len(value) <= 3:
        raise SpecError(
            f"input_size must hold 1, 2 or 3 integers, one a spatial dimension. Received: input_size={value!r}. "
            "Leave batch and channels out of it."
        )
    return _sizes("input_size", value, len(value))


def _named_padding(
    name: str, kernel_size: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[int, ...]:
    """torch's "valid" (none) and "same" (the output is as large as the input)."""
    if name == "valid":
        return (0,) * len(kernel_size)
    if name != "same":
        raise SpecError(f'padding must be a number, "same" or "valid". Received: padding="{name}". Use one of these.')
    if set(stride) != {1}:
        raise SpecError(f'padding="same" needs stride 1. Received: stride={stride}. Give the padding as numbers.')
    spans = [d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True)]
    if any(span % 2 for span in spans):
        raise SpecError(
            'padding="same" must be even: dilation * (kernel_size - 1) may not be odd. '
            f"Received: kernel_size={kernel_size}, dilation={dilation}. Pad the input by hand, one more at the end."
        )
    return tuple(span // 2 for span in spans)


def _bad_text(text: str, why: str) -> SpecError:
    return SpecError(
        f'"{text}" names no convolution: {why}. Write for example "n1c64o128i56x56k3x3s1p1": '
        + ", ".join(f"{letter} {name}" for letter, name in _LETTERS.items())
        + "."
    )
