"""Filling a window: the part of an input that a kernel reads, copied into scratch (layout: `hubel.engine.window`)."""

from __future__ import annotations

from collections.abc import Callable

from hubel.engine.ir.function import I64, PTR, Function, Value, vector_of
from hubel.engine.ir.rows import gather_row, zero_row
from hubel.engine.ir.storage import Pointer
from hubel.engine.ir.turn import QUAD, turn_function
from hubel.engine.window import WORDS


class WindowWords:
    """The words of a window block, loaded once, by name."""

    def __init__(self, f: Function, block: Value) -> None:
        self._f, self._block = f, block
        self._loaded: dict[str, Value] = {}

    def __getitem__(self, name: str) -> Value:
        if name not in self._loaded:
            type_ = PTR if name.startswith("table") else I64
            self._loaded[name] = self._f.word(self._block, WORDS.index(name), name, type_)
        return self._loaded[name]

    def load(self, *names: str) -> None:
        """Load words here, where every later use is dominated by the load."""
        for name in names:
            _ = self[name]


def fill_window_function(lanes: int, stored: Pointer = PTR) -> Function:
    """fill_window(target, source, window, channels, z, y, x): the box whose first output is (z, y, x), of one image.

    `source` is the image's first channel, stored as `stored` says, `target` its place in scratch.
    """
    rows = _fill_rows_function(lanes, stored)
    f = Function(
        "fill_window",
        [("target", PTR), ("source", stored), ("window", PTR), ("channels", I64), ("z", I64), ("y", I64), ("x", I64)],
        private=True,
    )
    words = WindowWords(f, f.arg("window"))
    words.load("phases_z", "phases_y", "phases_x", "pitch_phase")
    with (
        f.loop("pz", 0, words["phases_z"]) as pz,
        f.loop("py", 0, words["phases_y"]) as py,
        f.loop("px", 0, words["phases_x"]) as px,
    ):
        phase = (pz.index * words["phases_y"] + py.index) * words["phases_x"] + px.index
        target = f.arg("target") + phase * words["pitch_phase"]
        f.call(
            rows, target, f.arg("source"), f.arg("window"), f.arg("channels"),
            pz.index, py.index, px.index, f.arg("z"), f.arg("y"), f.arg("x"),
        )  # fmt: skip
    f.ret()
    return f


def _within(at: Value, size: Value) -> Value:
    return (at >= 0) & (at < size)


def _fill_rows_function(lanes: int, stored: Pointer) -> Function:
    """fill_rows(target, source, window, channels, phase_z, phase_y, phase_x, z, y, x): every row of one phase.

    A row is zeros up to `left`, data up to `right`, zeros to its end. A row outside the input is zeros alone. Where the
    channels of a pixel are side by side, the data of all of them are turned at the end.
    """
    numbers = [(n, I64) for n in ("channels", "phase_z", "phase_y", "phase_x", "z", "y", "x")]
    f = Function("fill_rows", [("target", PTR), ("source", stored), ("window", PTR), *numbers], private=True)
    words = WindowWords(f, f.arg("window"))
    words.load(*WORDS)
    start_z = f.load(f.offset(words["table_z"], f.arg("phase_z") * 3, I64), I64, "start_z")
    start_y = f.load(f.offset(words["table_y"], f.arg("phase_y") * 3, I64), I64, "start_y")
    table_x = f.offset(words["table_x"], f.arg("phase_x") * 3, I64)
    start_x, first, last = (f.word(table_x, i, n) for i, n in enumerate(("start_x", "first", "last")))
    x, width = f.arg("x"), words["valid_x"]
    left = f.maximum(f.minimum(first - x, width), 0)
    right = f.maximum(f.minimum(last - x, width), left)
    end = f.maximum(width, words["pitch_y"])
    step = words["step_x"] * words["stride_x"]
    data = f.arg("source") + ((x + left) * words["step_x"] + start_x) * words["stride_x"]
    contiguous, strided = step.equals(1), f.compare("ne", step, 1)
    turned = strided & words["stride_c"].equals(1) & (f.arg("channels") >= QUAD) & (right - left >= lanes)
    whole = (right - left) // lanes * lanes
    rest = f.lanes_below(right - left - whole, lanes)
    # The last vector of a row brings zeros with it.
    zeros_from = f.select(contiguous, left + whole + lanes, right, "zeros_from")

    def line_of(plane: Value, line: Value) -> tuple[Value, Value]:
        """Where a line's numbers begin in a channel, and whether it has any."""
        at_z = (f.arg("z") + plane) * words["step_z"] + start_z
        at_y = (f.arg("y") + line) * words["step_y"] + start_y
        inside = _within(at_z, words["size_z"]) & (plane < words["valid_z"])
        inside = inside & _within(at_y, words["size_y"]) & (line < words["valid_y"])
        return at_z * words["stride_z"] + at_y * words["stride_y"], inside

    with f.loop("c", 0, f.arg("channels")) as c, f.loop("plane", 0, words["planes"]) as plane:
        target_z = f.arg("target") + c.index * words["pitch_c"] + plane.index * words["pitch_z"]
        with f.loop("line", 0, words["rows"]) as line:
            source, inside = line_of(plane.index, line.index)
            source = data + c.index * words["stride_c"] + source
            target = target_z + line.index * words["pitch_y"]
            zero_row(f, target, left, lanes)
            with f.when(inside & contiguous, "copy"):
                with f.loop("col", 0, whole, lanes) as col:
                    f.store(f.load(source + col.index, vector_of(lanes)), target + left + col.index)
                f.store(f.load_masked(source + whole, rest, lanes), target + left + whole)
            with f.when(inside & strided & f.negate(turned), "gather"):
                gather_row(f, target + left, source, right - left, step)
            zeros = f.select(inside, zeros_from, left, "zeros")
            zero_row(f, target + zeros, end - zeros, lanes)
        # What the last row's zeros take, in this window or in the one it is laid out like.
        behind = words["rows"] * words["pitch_y"]
        zero_row(f, target_z + behind, words["pitch_z"] - behind, lanes)
    # Last: zeros are written up to a vector further than they go.
    with f.when(turned, "turned"):
        _turn_rows(f, words, turn_function(lanes, stored, "turn_window"), data, (left, right), line_of, lanes)
    f.ret()
    return f


def _turn_rows(
    f: Function,
    words: WindowWords,
    turn: Function,
    data: Value,
    columns: tuple[Value, Value],
    line_of: Callable[[Value, Value], tuple[Value, Value]],
    lanes: int,
) -> None:
    """The data of all channels, side by side from `data` on, into those columns of every row: a vector at least."""
    left, right = columns
    step = words["step_x"] * words["stride_x"]
    with f.loop("plane", 0, words["planes"]) as plane, f.loop("line", 0, words["rows"]) as line:
        source, inside = line_of(plane.index, line.index)
        target = f.arg("target") + plane.index * words["pitch_z"] + line.index * words["pitch_y"] + left
        with f.when(inside, "inside"), f.loop("col", 0, right - left, lanes) as col:
            at = f.minimum(col.index, right - left - lanes)
            place = data + source + at * step
            f.call(turn, target + at, place, 1, f.arg("channels"), step, 0, 0, words["pitch_c"], step * lanes)
