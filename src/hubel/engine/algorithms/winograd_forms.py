"""Forms of Winograd's algorithm: F(m, r) along the rows and columns of a tile, by the kernel's size.

A convolution has three axes here (outer, rows, columns). Along the outer one nothing is transformed: its taps are
summed in the transformed domain, like more channels, which read tiles of other planes. So each tile is transformed
once, and its products are `outer taps` times as many. Columns are always x, in whose direction memory is read.

    kernel                      outer         rows          columns
    3×3, 5×5 (×3, ×5 …)         z             y             x
    1×3, 1×5, 1×7, 1-D          –             –             x
    3×1, 5×1, 7×1               –             y             –
    3×1×1                       –             z             –           (planes of y are counted through one by one)
    7×7                         y, 7 taps     –             x

Errors grow with the points n = m + r − 1 along both axes, so that 7×7 kernels are transformed along one only, and
9 taps, F(2, 9), err by 7 u.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from hubel.engine.algorithms.geometry import three
from hubel.engine.algorithms.winograd_transforms import Transforms, transforms
from hubel.engine.plan import error_unit, terms_of
from hubel.engine.problem import Policy, Problem

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
# Bounds on the error in units of u, by points along both axes, the fewer first: measured, with some to spare
# (tests/engine/test_winograd.py).
ERRORS = {(1, 4): 1.2, (4, 4): 1.5, (1, 6): 2.0, (6, 6): 4.5, (1, 8): 4.0, (6, 8): 6.0, (1, 10): 6.0}
# Channels a group, in and out, from which on kernels other than 3×3 are looked at: with fewer the transforms take as
# long as they save.
LEAST_CHANNELS = 16
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
    def halo(self) -> int:
        """How many tiles to the right a tile reads."""
        return (self.cols.size - 1) // self.cols.outputs

    @property
    def outputs(self) -> tuple[int, int]:
        return self.rows.outputs, self.cols.outputs

    @property
    def taps(self) -> tuple[int, int]:
        return self.rows.taps, self.cols.taps

    @property
    def saved(self) -> float:
        """How many times fewer multiplications."""
        outputs, taps = self.outputs, self.taps
        return outputs[0] * outputs[1] * taps[0] * taps[1] / self.points

    @property
    def error(self) -> float:
        """Bound on the error in units of u."""
        low, high = sorted((self.rows.size, self.cols.size))
        return ERRORS[low, high]

    def __str__(self) -> str:
        """As in F(4x4, 3x3)."""
        return "{}x{}_{}x{}".format(*self.outputs, *self.taps)


@lru_cache(maxsize=1024)
def forms(kernel_size: tuple[int, ...]) -> tuple[Form, ...]:
    """The forms for kernels of this size; none if there are none."""
    z, y, x = three(kernel_size, 1)
    if (y, x) == (7, 7) and z == 1:
        # Rows are summed, columns transformed.
        axes, taps = (1, 0, 2), (1, x)
    elif y == 1 and z > 1:
        axes, taps = (1, 0, 2), (z, x)
    else:
        axes, taps = (0, 1, 2), (y, x)
    pairs = OUTPUTS.get(taps, ())
    return tuple(Form(transforms(my, taps[0]), transforms(mx, taps[1]), axes) for my, mx in pairs)


def allowed(problem: Problem, policy: Policy) -> tuple[Form, ...]:
    """The forms that a problem may have: those within the level of accuracy that was asked for."""
    spec = problem.spec
    if policy.accuracy == "strict" or set(spec.stride) | set(spec.dilation) != {1}:
        return ()
    return tuple(form for form in forms(spec.kernel_size) if form.error <= LIMITS[policy.accuracy])


def enough_channels(problem: Problem) -> bool:
    """Whether images of some size may gain."""
    spec = problem.spec
    fewest = min(spec.in_channels, spec.out_channels) // spec.groups
    return spec.kernel_size == (3, 3) or fewest >= LEAST_CHANNELS


def error_bound(form: Form, problem: Problem) -> float:
    """Bound on the relative error."""
    return form.error * error_unit(terms_of(problem))
