"""Windows of inputs whose channels follow each other: each place is a cell of channels, copied as it lies."""

from __future__ import annotations

from hubel.engine.ir import I64, PTR, Function, Pointer, Value, vector_of
from hubel.engine.ir.rows import copy_row, zero_row
from hubel.engine.ir.window import WindowWords


def fill_pixels_function(lanes: int, stored: Pointer) -> Function:
    """fill_pixels(target, source, window, channels, z, y, x, cell): as `fill_window`, of an input whose channels follow
    each other: each place of the window is a cell of channels.
    """
    numbers = [(n, I64) for n in ("channels", "z", "y", "x", "cell")]
    f = Function("fill_pixels", [("target", PTR), ("source", stored), ("window", PTR), *numbers], private=True)
    words = WindowWords(f, f.arg("window"))
    words.load("phases_z", "phases_y", "pitch_phase")
    row_function = _fill_cells_function(lanes, stored)
    with f.loop("pz", 0, words["phases_z"]) as pz, f.loop("py", 0, words["phases_y"]) as py:
        phase = pz.index * words["phases_y"] + py.index
        f.call(
            row_function, f.arg("target") + phase * words["pitch_phase"] * f.arg("cell"), f.arg("source"),
            f.arg("window"), f.arg("channels"), pz.index, py.index, f.arg("z"), f.arg("y"), f.arg("x"), f.arg("cell"),
        )  # fmt: skip
    f.ret()
    return f


def _fill_cells_function(lanes: int, stored: Pointer) -> Function:
    """fill_cells(target, source, window, channels, phase_z, phase_y, z, y, x, cell): every row of one phase."""
    numbers = [(n, I64) for n in ("channels", "phase_z", "phase_y", "z", "y", "x", "cell")]
    f = Function("fill_cells", [("target", PTR), ("source", stored), ("window", PTR), *numbers], private=True)
    words = WindowWords(f, f.arg("window"))
    words.load(
        "table_z", "table_y", "table_x", "valid_x", "valid_y", "valid_z", "pitch_y", "pitch_z", "planes", "rows",
        "step_z", "step_y", "size_z", "size_y", "stride_z", "stride_y", "stride_x",
    )  # fmt: skip
    start_z, start_y = (
        f.load(f.offset(words[f"table_{axis}"], f.arg(f"phase_{axis}") * 3, I64), I64, f"start_{axis}") for axis in "zy"
    )
    start_x, first, last = (f.word(words["table_x"], i, n) for i, n in enumerate(("start_x", "first", "last")))
    x, cell, width = f.arg("x"), f.arg("cell"), words["valid_x"]
    left = f.maximum(f.minimum(first - x, width), 0)
    right = f.maximum(f.minimum(last - x, width), left)
    end = f.maximum(width, words["pitch_y"])
    data = f.arg("source") + (x + left + start_x) * words["stride_x"]
    channels = f.arg("channels")
    dense = channels.equals(cell) & words["stride_x"].equals(cell)
    whole = channels // lanes * lanes
    rest = f.lanes_below(channels - whole, lanes)
    with f.loop("plane", 0, words["planes"]) as plane, f.loop("line", 0, words["rows"]) as line:
        inside, at = Value(f, "i1", "true"), {}
        for axis, index, start in (("z", plane.index, start_z), ("y", line.index, start_y)):
            at[axis] = (f.arg(axis) + index) * words[f"step_{axis}"] + start
            within = (at[axis] >= 0) & (at[axis] < words[f"size_{axis}"]) & (index < words[f"valid_{axis}"])
            inside = inside & within
        target = f.arg("target") + (plane.index * words["pitch_z"] + line.index * words["pitch_y"]) * cell
        source = data + at["z"] * words["stride_z"] + at["y"] * words["stride_y"]
        zero_row(f, target, left * cell, lanes)
        with f.when(inside & dense, "copied"):
            copy_row(f, target + left * cell, source, (right - left) * cell, lanes)
        with f.when(inside & f.negate(dense), "inside"), f.loop("col", 0, right - left) as col:
            from_, to = source + col.index * words["stride_x"], target + (left + col.index) * cell
            with f.loop("c", 0, whole, lanes) as c:
                f.store(f.load(from_ + c.index, vector_of(lanes)), to + c.index)
            with f.when(whole < channels, "some"):
                f.store(f.load_masked(from_ + whole, rest, lanes), to + whole)
        zeros = f.select(inside, right, left, "zeros")
        zero_row(f, target + zeros * cell, (end - zeros) * cell, lanes)
        behind = words["rows"] * words["pitch_y"]
        with f.when((line.index + 1).equals(words["rows"]), "behind"):
            begin = f.arg("target") + (plane.index * words["pitch_z"] + behind) * cell
            zero_row(f, begin, (words["pitch_z"] - behind) * cell, lanes)
    f.ret()
    return f
