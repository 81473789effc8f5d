"""Which convolutions a benchmark runs: from a problem's text, a network of the zoo, a shape list or a file.

A shape list is text, one layer a line: the problem (grammar in `hubel.engine.problem`), blanks, a name for people.
`#` opens a comment. A transposed convolution is written as the convolution whose input gradient it is:
n1c64o128i112x112k2x2s2p0/transposed reads 128 channels of 56x56 and writes 64 of 112x112. The repository keeps its
lists under `benchmarks/shapes/`; a name without a path finds them there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hubel.engine.problem import Direction, Problem
from hubel.engine.spec import ConvSpec
from hubel.errors import DataError, HubelError, SpecError, unknown

# What `hubel bench` runs when it is told nothing: one layer of each kind, about twenty seconds.
QUICK = """\
n1c64o64i56x56k3x3s1p1            resnet 3x3 64@56
n1c256o256i14x14k3x3s1p1          resnet 3x3 256@14
n1c64o256i56x56k1x1s1p0           resnet 1x1 64>256@56
n1c512o128i28x28k1x1s1p0          resnet 1x1 512>128@28
n1c256o512i14x14k3x3s2p1          resnet 3x3s2 256>512@14
n1c3o64i224x224k7x7s2p3           resnet stem
n1c128o128i56x56k3x3s1p1g128      mobilenet dw 128@56
n1c512o512i14x14k3x3s1p1g512      mobilenet dw 512@14
n1c6o16i14x14k5x5s1p0/bias        lenet conv2
"""

# What a case's text may say beyond a problem's.
TRANSPOSED, BACKWARD = "transposed", "backward"


@dataclass(frozen=True)
class Case:
    """One line of a benchmark: a problem and its name.

    both: weight and input gradient in one call, as in training. transposed: the problem is an input gradient, run as
    what it also is, the forward pass of a transposed convolution.
    """

    problem: Problem
    name: str
    both: bool = False
    transposed: bool = False

    @property
    def spec(self) -> ConvSpec:
        return self.problem.spec

    @property
    def target(self) -> str:
        """The row's address: the problem's text, with `/backward` for both gradients, `/transposed` for that."""
        if not self.both and not self.transposed:
            return str(self.problem)
        spec, *rest = str(dataclasses.replace(self.problem, direction=Direction.FORWARD)).split("/")
        return "/".join([spec, BACKWARD if self.both else TRANSPOSED, *rest])

    @property
    def work(self) -> str:
        """What is timed: a direction, or "backward" for both gradients; and what is stored, if not float32."""
        what = BACKWARD if self.both else "forward" if self.is_forward else str(self.problem.direction)
        return what if self.problem.dtype == "float32" else f"{what} {self.problem.dtype}"

    @property
    def is_forward(self) -> bool:
        """Whether it is the forward pass of a layer, transposed ones included."""
        return self.transposed or self.problem.direction is Direction.FORWARD

    @property
    def kind(self) -> str:
        return "transposed" if self.transposed else kind(self.spec)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """What the layer reads; a transposed one reads what its convolution writes."""
        return self.spec.output_shape if self.transposed else self.spec.input_shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """What the layer writes."""
        return self.spec.input_shape if self.transposed else self.spec.output_shape

    @property
    def output_padding(self) -> tuple[int, ...]:
        """Of a transposed layer: how much larger its output is than the smallest with this input."""
        spec = self.spec
        return tuple(
            large - ((small - 1) * s - 2 * p + d * (k - 1) + 1)
            for large, small, s, p, d, k in zip(
                spec.input_size,
                spec.output_size,
                spec.stride,
                spec.padding,
                spec.dilation,
                spec.kernel_size,
                strict=True,
            )
        )

    @property
    def bytes(self) -> int:
        """The least memory traffic: every tensor once, and about twice for both gradients."""
        return self.spec.bytes(4 if self.problem.dtype == "float32" else 2) * (2 if self.both else 1)

    @property
    def flops(self) -> int:
        """Two a multiply-add of the plain loops, padding counted; both gradients are twice one."""
        return self.spec.flops * (2 if self.both else 1)


def kind(spec: ConvSpec) -> str:
    """The class of layers over which a mean is taken; the first that fits, in the order of the code."""
    if spec.ndim != 2:
        return f"conv{spec.ndim}d"
    if 1 < spec.groups == spec.in_channels:
        if spec.kernel_size == (31, 31):
            return "depthwise 31x31"
        return "depthwise" if max(spec.kernel_size) <= 7 else "depthwise large"
    if spec.groups > 1:
        return "grouped"
    # LeNet's and CIFAR's layers: a few microseconds, where the call itself counts.
    if spec.macs < 3e6 * max(1, spec.batch):
        return "small"
    if spec.in_channels <= 4 or max(spec.stride) > 1:
        return "strided and stems"
    if spec.taps == 1:
        return "1x1"
    if spec.kernel_size == (3, 3):
        return "3x3" if min(spec.in_channels, spec.out_channels) >= 64 else "3x3 narrow"
    return "5x5, 1x7, 7x1, 1x3"


def resolve(
    targets: Sequence[str], *, batch: int | None = None, backward: bool = False, dtype: str | None = None
) -> list[Case]:
    """The cases that `targets` name, in order, each problem once. None: the quick list.

    batch: replaces every batch size. dtype: what is stored, everywhere. backward: the weight gradient, the input
    gradient, and both together, of each forward problem; a line that names a direction keeps it.
    Raises SpecError for a bad problem, UnknownNameError for a name found nowhere, DataError for a bad list.
    """
    cases: dict[str, Case] = {}
    for layer in [layer for target in targets or [""] for layer in _layers(target)]:
        spec = layer.spec if batch is None else dataclasses.replace(layer.spec, batch=batch)
        problem = dataclasses.replace(layer.problem, spec=spec, dtype=dtype or layer.problem.dtype)
        for case in _cases(dataclasses.replace(layer, problem=problem), backward):
            names = cases[case.target].name.split(", ") if case.target in cases else []
            cases[case.target] = dataclasses.replace(case, name=", ".join(dict.fromkeys([*names, case.name])))
    return list(cases.values())


def case_of(text: str, name: str | None = None) -> Case:
    """The case that a text names: a problem's, or with `/transposed` or `/backward` in the place of a direction.

    `Case.target` comes back. Raises SpecError.
    """
    parts = text.split("/")
    given = [part for part in parts[1:] if part in (TRANSPOSED, BACKWARD)]
    problem = Problem.parse("/".join(part for part in parts if part not in given))
    if not given:
        return Case(problem, name or text)
    if len(given) > 1 or problem.direction is not Direction.FORWARD:
        raise SpecError(f'a problem has one direction. Received: "{text}". Leave out all but one.')
    if given == [TRANSPOSED]:
        return Case(dataclasses.replace(problem, direction=Direction.INPUT_GRADIENT), name or text, transposed=True)
    return Case(dataclasses.replace(problem, direction=Direction.WEIGHT_GRADIENT), name or text, both=True)


def parse(text: str, source: str = "shapes") -> list[Case]:
    """The layers of a shape list; DataError names the line that is none."""
    layers = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        try:
            layers.append(case_of(words[0], " ".join(words[1:]) or None))
        except HubelError as error:
            raise DataError(f"{source}, line {number}: {error}") from None
    return layers


def lists() -> dict[str, Path]:
    """The shape lists in reach: those of this folder's `benchmarks/shapes`, or of the checkout hubel runs from."""
    found: dict[str, Path] = {}
    for root in (Path(__file__).resolve().parents[3], Path.cwd()):
        found |= {path.stem: path for path in sorted((root / "benchmarks" / "shapes").glob("*.txt"))}
    return found


def _layers(target: str) -> list[Case]:
    if not target:
        return parse(QUICK, "the quick list")
    path, known = Path(target), lists()
    if path.is_file() or target in known:
        path = path if path.is_file() else known[target]
        try:
            layers = parse(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"A shape list is a text file, one problem a line. Received: {path} ({error}).") from None
        if not layers:
            raise DataError(f"A shape list holds at least one problem. Received: {path}, which holds none. Add a line.")
        return layers
    # Problems are the only names with a digit after every letter; `c` and `k` are in all of them.
    if target[:1] in "ncoikspdg" and target[1:2].isdigit():
        return [case_of(target, target.split("/")[0])]
    return _network(target, known)


def _network(name: str, known: Iterable[str]) -> list[Case]:
    from hubel import zoo

    if name not in zoo.ZOO:
        raise unknown("network or shape list", name, sorted({*zoo.ZOO, *known}))
    return convolutions(name)


def _cases(layer: Case, backward: bool) -> list[Case]:
    if not backward or layer.problem.direction is not Direction.FORWARD:
        return [layer]
    weight = dataclasses.replace(layer.problem, direction=Direction.WEIGHT_GRADIENT, bias=False)
    data = dataclasses.replace(layer.problem, direction=Direction.INPUT_GRADIENT, bias=False)
    return [Case(weight, layer.name), Case(data, layer.name), Case(weight, layer.name, both=True)]


def convolutions(name: str) -> list[Case]:
    """The convolutions of a network of the zoo, one pass at its default input, in the order they run."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from hubel import zoo

    found: list[Case] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # torch's own signature
            y = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.convolution.default:
                x, w, b, stride, padding, dilation, transposed, _, groups = args
                # a transposed convolution is the input gradient of the one that goes the other way
                wide, narrow = (y, x) if transposed else (x, y)
                spec = ConvSpec(
                    x.shape[0],
                    wide.shape[1],
                    narrow.shape[1],
                    wide.shape[2:],
                    w.shape[2:],
                    stride,
                    padding,
                    dilation,
                    groups,
                )
                direction = Direction.INPUT_GRADIENT if transposed else Direction.FORWARD
                problem = Problem(spec, direction, bias=b is not None)
                found.append(Case(problem, f"{name} conv {len(found) + 1}", transposed=transposed))
            return y

    # On the meta device a network has shapes and no numbers: nothing is computed, however large it is.
    with torch.no_grad(), torch.device("meta"), Watch():
        zoo.build(name).eval()(torch.empty((1, *zoo.describe(name).input)))
    return found
