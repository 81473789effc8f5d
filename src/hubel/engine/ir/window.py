"""Filling a window: the part of an input that a kernel reads, copied into scratch (layout: `hubel.engine.window`)."""

from __future__ import annotations

from hubel.engine.ir.function import I64, PTR, Function, Value
from hubel.engine.ir.rows import copy_row, gather_row, zero_row
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


def fill_window_function(lanes: int) -> Function:
    """fill_window(target, source, window, channels, z, y, x): the box whose first output is (z, y, x), of one image.

    `source` is the image's first channel, `target` its place in scratch.
    """
    rows = _fill_rows_function(lanes)
    f = Function(
        "fill_window",
        [("target", PTR), ("source", PTR), ("window", PTR), ("channels", I64), ("z", I64), ("y", I64), ("x", I64)],
        private=True,
    )
    words = WindowWords(f, f.arg("window"))
    words.load("stride_c", "pitch_c", "phases_z", "phases_y", "phases_x", "pitch_phase")
    with f.loop("c", 0, f.arg("channels")) as c:
        source = f.arg("source") + c.index * words["stride_c"]
        target = f.arg("target") + c.index * words["pitch_c"]
        with (
            f.loop("pz", 0, words["phases_z"]) as pz,
            f.loop("py", 0, words["phases_y"]) as py,
            f.loop("px", 0, words["phases_x"]) as px,
        ):
            phase = (pz.index * words["phases_y"] + py.index) * words["phases_x"] + px.index
            to = target + phase * words["pitch_phase"]
            f.call(rows, to, source, f.arg("window"), pz.index, py.index, px.index, f.arg("z"), f.arg("y"), f.arg("x"))
    f.ret()
    return f


def _within(at: Value, size: Value) -> Value:
    return (at >= 0) & (at < size)


def _fill_rows_function(lanes: int) -> Function:
    """fill_rows(target, source, window, phase_z, phase_y, phase_x, z, y, x): every row of one channel and phase.

    A row is zeros up to `left`, data up to `right`, zeros to its end. A row outside the input is zeros alone.
    """
    numbers = [(n, I64) for n in ("phase_z", "phase_y", "phase_x", "z", "y", "x")]
    f = Function("fill_rows", [("target", PTR), ("source", PTR), ("window", PTR), *numbers], private=True)
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
    with f.loop("plane", 0, words["planes"]) as plane:
        target_z = f.arg("target") + plane.index * words["pitch_z"]
        with f.loop("line", 0, words["rows"]) as line:
            at_z = (f.arg("z") + plane.index) * words["step_z"] + start_z
            at_y = (f.arg("y") + line.index) * words["step_y"] + start_y
            inside = _within(at_z, words["size_z"]) & _within(at_y, words["size_y"])
            inside = inside & (plane.index < words["valid_z"]) & (line.index < words["valid_y"])
            target = target_z + line.index * words["pitch_y"]
            source = data + at_z * words["stride_z"] + at_y * words["stride_y"]
            zero_row(f, target, left, lanes)
            with f.when(inside & contiguous, "copy"):
                copy_row(f, target + left, source, right - left, lanes)
            with f.when(inside & strided, "gather"):
                gather_row(f, target + left, source, right - left, step)
            rest = f.select(inside, right, left, "rest")
            zero_row(f, target + rest, end - rest, lanes)
        # What the last row's zeros take, in this window or in the one it is laid out like.
        behind = words["rows"] * words["pitch_y"]
        zero_row(f, target_z + behind, words["pitch_z"] - behind, lanes)
    f.ret()
    return f
