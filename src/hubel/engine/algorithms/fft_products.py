"""What lies between the transforms of `algorithms/fft.py`: at each frequency, columns convolved along x."""

from __future__ import annotations

from dataclasses import dataclass

from hubel.engine.algorithms.words import job_words
from hubel.engine.ir import F32, I64, PTR, Function, Value, vector_of

# The words of a job after the base pointers, in this order.
WORDS = (
    "bands_at", "bands", "groups", "channels", "rows", "parts", "part_rows",
    "in_n", "in_c", "in_y", "in_x", "width", "read_width", "out_n", "out_c", "out_y", "out_x", "out_width", "put_width",
    "copy_in", "copy_out", "taps", "from_tap",
    "pitch", "spectrum_c", "out_pitch", "w_pitch", "margin", "vectors", "put_vectors", "widest", "wide",
    "zeros_at", "between_at", "ins_at", "rows_at", "outs_at", "made_at", "in_at", "out_at", "dump_at",
    "spectrum_at", "sums_at", "images", "multiplier",
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """What is compiled in: the length of the transforms, the lanes, and the vectors side by side of the register tiles
    between them, the widest first.
    """

    length: int
    lanes: int
    tiles: tuple[int, ...]

    @property
    def frequencies(self) -> int:
        """Those with an imaginary part."""
        return self.length // 2 - 1


def tiles_of(lanes: int, registers: int) -> tuple[int, ...]:
    """Widths of tiles: four sums a vector, of two kinds of weights, must stay in registers."""
    return (4, 3, 2, 1) if registers >= 32 else (3, 2, 1)


def multiply_function(shape: Shape, add: bool = False) -> Function:
    """multiply(args, scratch, weights, bias): the transforms of one output channel's columns.

    At each frequency, columns are convolved along x with the transforms of the kernel's columns:

        sums[x] = Σ_c Σ_t  conjugate(weights[c, t]) · spectrum[c, x + t]

    add: times 2 ∕ length, which weights have in them otherwise, and added to what is there instead of the bias.
    """
    f = Function("multiply", [(n, PTR) for n in ("args", "scratch", "weights", "bias")], private=True)
    a = job_words(
        f, WORDS, "channels", "taps", "from_tap", "pitch", "spectrum_c", "out_pitch", "w_pitch", "widest", "wide",
        "put_vectors", "spectrum_at", "sums_at",
    )  # fmt: skip
    source = f.arg("scratch") + a["spectrum_at"] + a["from_tap"]
    target = f.arg("scratch") + a["sums_at"]
    # As many of the widest tiles as there are, then of the next, then what is left.
    stops = [a["widest"], a["wide"], *[a["put_vectors"]] * (len(shape.tiles) - 2)]
    start: Value | int = 0
    for width, stop in zip(shape.tiles, stops, strict=True):
        row = _Rows(shape, width, add).function()
        begin = f.constant(start)
        whole = (stop - begin) // width * width + begin
        with f.loop(f"v{width}", begin, whole, width) as v:
            x = v.index * shape.lanes
            f.call(
                row, source + x, target + x, f.arg("weights"), f.arg("bias"), a["channels"], a["taps"], a["pitch"],
                a["spectrum_c"], a["out_pitch"], a["w_pitch"],
            )  # fmt: skip
        start = whole
    f.ret()
    return f


@dataclass(frozen=True)
class _Rows:
    """All frequencies of `width` neighbouring vectors."""

    shape: Shape
    width: int
    add: bool

    def function(self) -> Function:
        """rows_<width>(source, target, weights, bias, channels, taps, pitch, source_c, out_pitch, w_pitch)"""
        pointers = [(n, PTR) for n in ("source", "target", "weights", "bias")]
        numbers = [(n, I64) for n in ("channels", "taps", "pitch", "source_c", "out_pitch", "w_pitch")]
        f = Function(f"rows_{self.width}", [*pointers, *numbers], private=True)
        self._ends(f)
        # One vector alone has too few sums to keep the multiply-adds going: two frequencies then.
        together = 2 if self.width == 1 else 1
        paired = self.shape.frequencies // together * together
        with f.loop("frequency", 1, paired + 1, together) as k:
            self._frequencies(f, k.index, together)
        if paired < self.shape.frequencies:
            self._frequencies(f, f.constant(self.shape.frequencies), 1)
        f.ret()
        return f

    def _ends(self, f: Function) -> None:
        """Frequencies 0 and length ∕ 2, which are real. All weights are twice as large as theirs must be."""
        lanes, vector = self.shape.lanes, vector_of(self.shape.lanes)
        sums = self._taps(f, 1, f.arg("source"), f.arg("weights"), real=True)
        zero = f.constant(0.0, vector)
        bias = zero if self.add else f.splat(f.load(f.arg("bias"), F32, "bias"), lanes, "bias")
        half = f.constant(1 / self.shape.length if self.add else 0.5, vector)
        for row in (0, 1):
            for v in range(self.width):
                place = f.arg("target") + (f.arg("out_pitch") * row + v * lanes)
                before = f.load(place, vector) if self.add else (bias, zero)[row]
                f.store(f.fma(sums[row * self.width + v], half, before, "mean"), place)

    def _frequencies(self, f: Function, first: Value, count: int) -> None:
        """Frequencies `first` to first + count."""
        lanes, vector, out_pitch = self.shape.lanes, vector_of(self.shape.lanes), f.arg("out_pitch")
        source = f.arg("source") + f.arg("pitch") * (first * 2)
        weights = f.arg("weights") + f.arg("w_pitch") * (first * 2)
        target = f.arg("target") + out_pitch * (first * 2)
        sums = self._taps(f, count, source, weights)
        for i in range(count):
            for v in range(self.width):
                a, b, c, d = sums[(i * self.width + v) * 4 : (i * self.width + v) * 4 + 4]
                for part, total in enumerate((a + b, c - d)):
                    place = target + (out_pitch * (2 * i + part) + v * lanes)
                    if self.add:
                        total = f.fma(total, f.constant(2 / self.shape.length, vector), f.load(place, vector))
                    f.store(total, place)

    def _taps(self, f: Function, count: int, source: Value, weights: Value, real: bool = False) -> list[Value]:
        """The sums over channels and taps: four for each frequency and vector (re·re, im·im, re·im, im·re); of two real
        frequencies one for each vector.
        """
        lanes, width = self.shape.lanes, self.width
        vector = vector_of(lanes)
        zeros = [f.constant(0.0, vector)] * (2 * width if real else 4 * width * count)
        pitch, w_pitch = f.arg("pitch"), f.arg("w_pitch")
        with f.loop("c", 0, f.arg("channels"), carry=[source, weights, *zeros], at_least_once=True) as c:
            from_c, w_c, *sums = c.carried
            with f.loop("tap", 0, f.arg("taps"), carry=sums, at_least_once=True) as tap:
                after = list(tap.carried)
                for i in range(count):
                    x = [from_c + (pitch * (2 * i + part) + tap.index) for part in (0, 1)]
                    at = [w_c + (w_pitch * (2 * i + part) + tap.index) for part in (0, 1)]
                    w = [f.splat(f.load(place, F32, "w"), lanes, "weight") for place in at]
                    for v in range(width):
                        re, im = (f.load(place + v * lanes, vector, "x") for place in x)
                        if real:
                            products = [(v, w[0], re), (width + v, w[1], im)]
                        else:
                            first = (i * width + v) * 4
                            products = [(first, w[0], re), (first + 3, w[1], re)]
                            products += [(first + 1, w[1], im), (first + 2, w[0], im)]
                        for index, weight, value in products:
                            after[index] = f.fma(weight, value, after[index])
                tap.carry(*after)
            c.carry(from_c + f.arg("source_c"), w_c + w_pitch * self.shape.length, *tap.results)
        return c.results[2:]
