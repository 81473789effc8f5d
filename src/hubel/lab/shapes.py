"""Which convolutions a benchmark runs: from a problem's text, a network of the zoo, a shape list or a file.

A shape list is text, one layer a line: the problem (grammar in `hubel.engine.spec`), blanks, a name for people.
`#` opens a comment. The repository keeps its lists under `benchmarks/shapes/`; a name without a path finds them there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hubel.engine.spec import ConvSpec, Direction, Problem
from hubel.errors import DataError, HubelError, unknown

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


@dataclass(frozen=True)
class Case:
    """One line of a benchmark: a problem and its name. both: weight and input gradient in one call, as in training."""

    problem: Problem
    name: str
    both: bool = False

    @property
    def spec(self) -> ConvSpec:
        return self.problem.spec

    @property
    def target(self) -> str:
        """The row's address: the problem's text, with `/backward` for both gradients."""
        return f"{self.problem.spec}/backward" if self.both else str(self.problem)

    @property
    def work(self) -> str:
        """What is timed: a direction, or "backward" for both gradients."""
        return "backward" if self.both else str(self.problem.direction)

    @property
    def flops(self) -> int:
        """Two a multiply-add of the plain loops, padding counted; both gradients are twice one."""
        return self.spec.flops * (2 if self.both else 1)


def kind(spec: ConvSpec) -> str:
    """The class of layers over which a mean is taken; the first that fits, in the order of the code."""
    channels = min(spec.in_channels, spec.out_channels)
    size = "x".join(map(str, spec.kernel_size))
    if spec.ndim != 2:
        return f"conv{spec.ndim}d"
    if 1 < spec.groups == spec.in_channels:
        return "depthwise" if max(spec.kernel_size) <= 7 else "depthwise large"
    if spec.groups > 1:
        return "grouped"
    if spec.taps == 1:
        return "1x1" if channels >= 64 else "1x1 narrow"
    # LeNet's and CIFAR's layers: a few microseconds, where the call itself counts.
    if spec.macs < 3e6 * max(1, spec.batch):
        return "small"
    if spec.in_channels <= 4:
        return "stem"
    if max(spec.stride) > 1:
        return "strided"
    if spec.kernel_size == (3, 3):
        return "3x3" if channels >= 64 else "3x3 narrow"
    return f"{size} dense" if channels >= 64 else f"{size} narrow"


def resolve(targets: Sequence[str], *, batch: int | None = None, backward: bool = False) -> list[Case]:
    """The cases that `targets` name, in order, each problem once. None: the quick list.

    batch: replaces every batch size. backward: the weight gradient, the input gradient, and both together, of each
    forward problem; a line that names a direction keeps it.
    Raises SpecError for a bad problem, UnknownNameError for a name found nowhere, DataError for a bad list.
    """
    layers: list[tuple[Problem, str]] = []
    for target in targets or [""]:
        layers += _layers(target)
    cases: dict[str, Case] = {}
    for problem, name in layers:
        spec = problem.spec if batch is None else dataclasses.replace(problem.spec, batch=batch)
        for case in _cases(dataclasses.replace(problem, spec=spec), name, backward):
            names = cases[case.target].name.split(", ") if case.target in cases else []
            cases[case.target] = dataclasses.replace(case, name=", ".join(dict.fromkeys([*names, name])))
    return list(cases.values())


def parse(text: str, source: str = "shapes") -> list[tuple[Problem, str]]:
    """The problems and names of a shape list; DataError names the line that is none."""
    layers = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        try:
            problem = Problem.parse(words[0])
        except HubelError as error:
            raise DataError(f"{source}, line {number}: {error}") from None
        layers.append((problem, " ".join(words[1:]) or words[0]))
    return layers


def lists() -> dict[str, Path]:
    """The shape lists in reach: those of this folder's `benchmarks/shapes`, or of the checkout hubel runs from."""
    found: dict[str, Path] = {}
    for root in (Path(__file__).resolve().parents[3], Path.cwd()):
        found |= {path.stem: path for path in sorted((root / "benchmarks" / "shapes").glob("*.txt"))}
    return found


def _layers(target: str) -> list[tuple[Problem, str]]:
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
        return [(Problem.parse(target), target.split("/")[0])]
    return _network(target, known)


def _network(name: str, known: Iterable[str]) -> list[tuple[Problem, str]]:
    from hubel import zoo

    if name not in zoo.ZOO:
        raise unknown("network or shape list", name, sorted({*zoo.ZOO, *known}))
    return convolutions(name)


def _cases(problem: Problem, name: str, backward: bool) -> list[Case]:
    if not backward or problem.direction is not Direction.FORWARD:
        return [Case(problem, name)]
    weight = dataclasses.replace(problem, direction=Direction.WEIGHT_GRADIENT, bias=False)
    data = dataclasses.replace(problem, direction=Direction.INPUT_GRADIENT, bias=False)
    return [Case(weight, name), Case(data, name), Case(weight, name, both=True)]


def convolutions(name: str) -> list[tuple[Problem, str]]:
    """The convolutions of a network of the zoo, one pass at its default input, in the order they run."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from hubel import zoo

    found: list[tuple[Problem, str]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # torch's own signature
            if func is torch.ops.aten.convolution.default and not args[6]:
                x, w, b, stride, padding, dilation, _, _, groups = args
                spec = ConvSpec(
                    x.shape[0], x.shape[1], w.shape[0], x.shape[2:], w.shape[2:], stride, padding, dilation, groups
                )
                found.append((Problem(spec, bias=b is not None), f"{name} conv {len(found) + 1}"))
            return func(*args, **(kwargs or {}))

    # On the meta device a network has shapes and no numbers: nothing is computed, however large it is.
    with torch.no_grad(), Watch():
        net = zoo.build(name).to("meta").eval()
        net(torch.empty((1, *zoo.describe(name).input), device="meta"))
    return found
