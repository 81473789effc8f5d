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
    row = _fill_row_function(lanes)
    f = Function(
        "fill_window",
        [("target", PTR), ("source", PTR), ("window", PTR), ("channels", I64), ("z", I64), ("y", I64), ("x", I64)],
        private=True,
    )
    words = WindowWords(f, f.arg("window"))
    words.load(*WORDS)
    with f.loop("c", 0, f.arg("channels")) as c:
        source_c = f.arg("source") + c.index * words["stride_c"]
        target_c = f.arg("target") + c.index * words["pitch_c"]
        with f.loop("pz", 0, words["phases_z"]) as pz, f.loop("py", 0, words["phases_y"]) as py:
            start_z = f.load(f.offset(words["table_z"], pz.index * 3, I64), I64, "start_z")
            start_y = f.load(f.offset(words["table_y"], py.index * 3, I64), I64, "start_y")
            with f.loop("px", 0, words["phases_x"]) as px:
                phase = (pz.index * words["phases_y"] + py.index) * words["phases_x"] + px.index
                target_p = target_c + phase * words["pitch_phase"]
                table = f.offset(words["table_x"], px.index * 3, I64)
                with f.loop("plane", 0, words["planes"]) as plane, f.loop("line", 0, words["rows"]) as line:
                    at_z = (f.arg("z") + plane.index) * words["step_z"] + start_z
                    at_y = (f.arg("y") + line.index) * words["step_y"] + start_y
                    inside = (
                        _within(at_z, words["size_z"])
                        & _within(at_y, words["size_y"])
                        & (plane.index < words["valid_z"])
                        & (line.index < words["valid_y"])
                    )
                    target = target_p + plane.index * words["pitch_z"] + line.index * words["pitch_y"]
                    source = source_c + at_z * words["stride_z"] + at_y * words["stride_y"]
                    # A row outside the input has no data: an empty range of places.
                    f.call(row, target, source, f.arg("window"), table, f.arg("x"), f.select(inside, 1, 0, "inside"))
    f.ret()
    return f


def _within(at: Value, size: Value) -> Value:
    return (at >= 0) & (at < size)


def _fill_row_function(lanes: int) -> Function:
    """fill_row(target, source, window, table, x, inside): zeros, data, zeros."""
    f = Function(
        "fill_row",
        [("target", PTR), ("source", PTR), ("window", PTR), ("table", PTR), ("x", I64), ("inside", I64)],
        private=True,
    )
    words = WindowWords(f, f.arg("window"))
    words.load("stride_x", "step_x", "valid_x", "pitch_y")
    target, x, width = f.arg("target"), f.arg("x"), words["valid_x"]
    start, first, last = (f.word(f.arg("table"), i, n) for i, n in enumerate(("start", "first", "last")))
    left = f.maximum(f.minimum(first - x, width), 0)
    right = f.maximum(f.minimum(last - x, width), left)
    right = f.select(f.arg("inside").equals(1), right, left, "right")
    zero_row(f, target, left, lanes)
    step = words["step_x"] * words["stride_x"]
    source = f.arg("source") + ((x + left) * words["step_x"] + start) * words["stride_x"]
    with f.when(step.equals(1), "contiguous"):
        copy_row(f, target + left, source, right - left, lanes)
    with f.when(f.compare("ne", step, 1), "strided"):
        gather_row(f, target + left, source, right - left, step)
    zero_row(f, target + right, f.maximum(width, words["pitch_y"]) - right, lanes)
    f.ret()
    return f
