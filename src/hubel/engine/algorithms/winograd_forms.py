"""Forms of Winograd's algorithm: F(m, r) along the rows and columns of a tile, by the kernel's size.

A convolution has three axes here (outer, rows, columns). Along the outer one nothing is transformed: its taps are
summed in the transformed domain, like more channels, which read tiles of other planes. So each tile is transformed
once, and its products are `outer taps` times as many; a stride along it only means that other planes are read. Columns
are always x, in whose direction memory is read.

    kernel                      outer         rows          columns
    3×3, 5×5 (×3, ×5 …)         z             y             x
    1×3, 1×5, 1×7, 1-D          –             –             x
    3×1, 5×1, 7×1               –             y             –
    3×1×1                       –             z             –           (planes of y are counted through one by one)
    7×7                         y, 7 taps     –             x

Errors grow with the points n = m + r − 1 along both axes, so that 7×7 kernels are transformed along one only, and
9 taps, F(2, 9), err by 7 u.

Where rows and columns have stride 2, both are taken apart into even and odd ones (`winograd_transforms.strided`, and
`interleaved` for the input gradient): 3×3, 4×4 and 5×5, and 1-D; of volumes whose outer axis has a stride, too, the
forward pass alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from hubel.engine.algorithms.geometry import Sum, sums, three
from hubel.engine.algorithms.winograd_transforms import Transforms, interleaved, strided, transforms
from hubel.engine.plan import error_unit, terms_of
from hubel.engine.problem import Direction, Policy, Problem
from hubel.engine.window import Axis

# Outputs m of a tile along (rows, columns), by taps r along both. At most two forms a kernel size: all image sizes of a
# layer together have four kernels, and direct convolution needs the others.
OUTPUTS: dict[tuple[int, int], tuple[tuple[int, int], ...]] = {
    (3, 3): ((4, 4), (2, 2)),
    (5, 5): ((4, 2), (2, 2)),
    (1, 3): ((1, 4), (1, 2)),
    (1, 5): ((1, 4), (1, 2)),
    (1, 7): ((1, 4), (1, 2)),
    (3, 1): ((4, 1), (2, 1)),
    (5, 1): ((4, 1), (2, 1)),
    (7, 1): ((4, 1), (2, 1)),
}
# The same where the stride is 2; of an input gradient, outputs m of each remainder.
WITH_STRIDE: dict[tuple[int, int], tuple[tuple[int, int], ...]] = {
    (3, 3): ((4, 4), (2, 2)),
    (4, 4): ((4, 4), (2, 2)),
    (5, 5): ((4, 4), (2, 2)),
    (1, 3): ((1, 4), (1, 2)),
    (1, 4): ((1, 4), (1, 2)),
    (1, 5): ((1, 4), (1, 2)),
}
# Bounds on the error in units of u, by the points of the longest filter along both axes, the fewer first: measured,
# with some to spare (tests/engine/test_winograd.py).
ERRORS = {
    (1, 3): 1.0,
    (3, 3): 1.5,
    (1, 5): 2.0,
    (5, 5): 3.5,
    (1, 4): 1.2,
    (4, 4): 1.5,
    (1, 6): 2.0,
    (6, 6): 4.5,
    (1, 8): 4.0,
    (6, 8): 6.0,
    (1, 10): 6.0,
}
# Channels a group, in and out, from which on kernels other than 3×3 with stride 1 are looked at: with fewer the
# transforms take as long as they save.
LEAST_CHANNELS = 16
# Channels a group to be made, for those: with fewer its tiles are mostly empty (64 → 3 at 224×224, the input gradient
# of VGG's first layer: 2.24 ms, `direct` 1.58; 64 → 4 at 56×56 0.120 and 0.110, 64 → 8 0.119 and 0.195; Zen 3).
LEAST_MADE = 5
LIMITS = {"default": 6.0, "fast": 20.0}


@dataclass(frozen=True)
class Form:
    """rows, cols: F(m, r) along the rows and the columns of a tile; axes: which of (z, y, x) are outer, rows and
    columns."""

    rows: Transforms
    cols: Transforms
    axes: tuple[int, int, int]

    @property
    def points(self) -> int:
        """Products that belong to a tile."""
        return self.rows.size * self.cols.size

    @property
    def outputs(self) -> tuple[int, int]:
        return self.rows.outputs, self.cols.outputs

    @property
    def taps(self) -> tuple[int, int]:
        return self.rows.taps, self.cols.taps

    @property
    def saved(self) -> float:
        """How many times fewer multiplications."""
        return self.rows.direct * self.cols.direct / self.points

    @property
    def error(self) -> float:
        """Bound on the error in units of u."""
        low, high = sorted((self.rows.longest, self.cols.longest))
        return ERRORS[low, high]

    def __str__(self) -> str:
        """As in F(4x4, 3x3), and what is said of filters with stride 2."""
        name = "{}x{}_{}x{}".format(*self.outputs, *self.taps)
        return "_".join([name, *dict.fromkeys(t.kind for t in (self.rows, self.cols) if t.kind)])


def forms_of(problem: Problem) -> tuple[Form, ...]:
    """The forms that a problem has, whatever its channels."""
    spec = problem.spec
    if set(spec.dilation) != {1}:
        return ()
    if set(spec.stride) == {1}:
        return forms(spec.kernel_size)
    forward = problem.direction is Direction.FORWARD
    return forms(spec.kernel_size, spec.stride, None if forward else tuple(p % 2 for p in spec.padding))


@lru_cache(maxsize=1024)
def forms(
    kernel_size: tuple[int, ...], stride: tuple[int, ...] = (), padding: tuple[int, ...] | None = None
) -> tuple[Form, ...]:
    """The forms for kernels of this size; none if there are none.

    stride: 1 where it is not given. padding: of input gradients with stride 2; only whether it is odd matters.
    """
    z, y, x = three(kernel_size, 1)
    if set(stride) - {1}:
        return _forms_with_stride((z, y, x), three(stride, 1), None if padding is None else three(padding, 0))
    if (y, x) == (7, 7) and z == 1:
        # Rows are summed, columns transformed.
        axes, taps = (1, 0, 2), (1, x)
    elif y == 1 and z > 1:
        axes, taps = (1, 0, 2), (z, x)
    else:
        axes, taps = (0, 1, 2), (y, x)
    pairs = OUTPUTS.get(taps, ())
    return tuple(Form(transforms(my, taps[0]), transforms(mx, taps[1]), axes) for my, mx in pairs)


def _forms_with_stride(
    kernel: tuple[int, int, int], stride: tuple[int, int, int], padding: tuple[int, int, int] | None
) -> tuple[Form, ...]:
    """The forms of a kernel with stride 2 in its plane wherever it has more than one tap there."""
    pairs = WITH_STRIDE.get(kernel[1:], ())
    if stride[0] != 1 and padding is not None:
        return ()
    if any(step != (1 if taps == 1 else 2) for taps, step in zip(kernel[1:], stride[1:], strict=True)):
        return ()

    def along(axis: int, outputs: int) -> Transforms:
        if kernel[axis] == 1:
            return transforms(outputs, 1)
        return strided(outputs, kernel[axis]) if padding is None else interleaved(outputs, kernel[axis], padding[axis])

    return tuple(Form(along(1, my), along(2, mx), (0, 1, 2)) for my, mx in pairs)


def whole(problem: Problem) -> Sum:
    """A forward convolution or an input gradient as one sum: the remainders of a gradient with stride 2 together, whose
    tiles hold both. Its axes' shifts and taps belong together, a shift for every tap.
    """
    plain = Problem(problem.spec, problem.direction)
    spec, parts = problem.spec, sums(plain)
    if problem.direction is Direction.FORWARD or set(spec.stride) == {1}:
        return parts[0]
    sizes = zip(*(three(s, 1) for s in (spec.output_size, spec.input_size, spec.kernel_size, spec.stride)), strict=True)
    axes, taps = [], []
    for (read, made, kernel, step), pad in zip(sizes, three(spec.padding, 0), strict=True):
        shifts = tuple(((tap - pad) % step + pad - tap) // step for tap in range(kernel))
        axes.append(Axis(read, made, 1, shifts))
        taps.append(tuple(range(kernel)))
    return Sum(tuple(axes), tuple(taps), (1, 1, 1), (0, 0, 0), parts[0].rows, parts[0].channels)  # type: ignore[arg-type]


def allowed(problem: Problem, policy: Policy) -> tuple[Form, ...]:
    """The forms that a problem may have: those within the level of accuracy that was asked for."""
    if policy.accuracy == "strict":
        return ()
    return tuple(form for form in forms_of(problem) if form.error <= LIMITS[policy.accuracy])


def too_few_channels(problem: Problem) -> str:
    """Why images of no size gain, or nothing."""
    spec = problem.spec
    made = (spec.out_channels if problem.direction is Direction.FORWARD else spec.in_channels) // spec.groups
    if min(spec.in_channels, spec.out_channels) // spec.groups >= LEAST_CHANNELS:
        return ""
    fewest = f"{LEAST_CHANNELS} channels a group"
    if spec.kernel_size == (3, 3) and spec.stride == (1, 1):
        if made >= LEAST_MADE:
            return ""
        fewest = f"{LEAST_MADE} channels a group to make"
    return f"transforms take as long as they save with fewer than {fewest}"


def error_bound(form: Form, problem: Problem) -> float:
    """Bound on the relative error."""
    return form.error * error_unit(terms_of(problem))
