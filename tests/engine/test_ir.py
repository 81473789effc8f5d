"""The vocabulary of kernels, word by word: what the text says, and what the machine code does."""

from __future__ import annotations

import numpy as np
import pytest

from hubel.engine.ir import F32, I64, PTR, Function, module_text, vector_of
from hubel.engine.ir.function import float_constant
from hubel.engine.ir.rows import copy_row, gather_row, scatter_row, store_rows_function, zero_row
from hubel.engine.ir.tile import ADD, BIAS, dot_product_tile, horizontal_sums, outer_product_tile, panel_tile
from tests.engine.calls import LANES, native
from tests.engine.guards import CANARY

NAN = np.uint32(CANARY).view(np.float32)
MARGIN = 40


def numbers(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-8, 9, count).astype(np.float32)


def empty(count: int) -> np.ndarray:
    """Canaries, with a margin on either side; `inside` shows the middle."""
    return np.full(count + 2 * MARGIN, NAN)


def inside(memory: np.ndarray) -> np.ndarray:
    return memory[MARGIN : memory.size - MARGIN]


def untouched(*parts: np.ndarray) -> bool:
    return all((np.ascontiguousarray(part).view(np.uint32) == CANARY).all() for part in parts)


# --- functions, values, loops


def test_constants_are_folded() -> None:
    f = Function("f", [("n", I64), ("x", PTR)])
    n, x, before = f.arg("n"), f.arg("x"), len(f.lines)
    assert (n + 0) is n and (n * 1) is n and (n // 1) is n and (0 + n).text == n.text and (n * 0).number == 0
    assert (x + 0) is x and f.offset(x, 0) is x
    three = f.constant(3)
    assert [v.number for v in (three + 4, three - 5, three * 6, three // 2, three % 2)] == [7, -2, 18, 1, 1]
    assert f.minimum(three, 2).number == 2 and f.maximum(three, 2).number == 3
    assert len(f.lines) == before, "a folded constant emits nothing"
    assert (n + 1).number is None and len(f.lines) == before + 1


def test_division_is_not_folded_where_c_and_python_disagree() -> None:
    """C rounds towards zero, Python down."""
    f = Function("f", [])
    assert (f.constant(-7) // 2).number is None
    assert (f.constant(-7) % 2).number is None


@pytest.mark.parametrize("number", [0.0, -0.0, 1.5, 0.1, 3e38, 1e-45, float("inf")])
def test_float_constants_keep_their_bits(number: float) -> None:
    f = Function("put", [("x", PTR)])
    f.store(f.constant(number, F32), f.arg("x"))
    f.ret()
    x = np.full(1, np.nan, np.float32)
    native(f)(x=x)
    assert x.view(np.uint32)[0] == np.float32(number).view(np.uint32)
    assert float_constant(number).startswith("0x")


def test_names_are_unique_and_kept() -> None:
    f = Function("f", [("x", PTR)])
    names = [f.load(f.arg("x"), F32, "pixel").text for _ in range(3)]
    assert len(set(names)) == 3
    assert all(name.startswith("%pixel") for name in names)


def test_loops_count_and_carry() -> None:
    """out = [turns, sum of the indices, last state of a carried float] for range(start, stop, step)."""
    f = Function("count", [("out", PTR), ("sum", PTR), ("start", I64), ("stop", I64), ("step", I64)])
    with f.loop(
        "i", f.arg("start"), f.arg("stop"), f.arg("step"), carry=[f.constant(0), f.constant(0), f.constant(1.0, F32)]
    ) as i:
        turns, total, power = i.carried
        i.carry(turns + 1, total + i.index, power * f.constant(2.0, F32))
    f.store(i.results[0], f.arg("out"))
    f.store(i.results[1], f.offset(f.arg("out"), 1, I64))
    f.store(i.results[2], f.arg("sum"))
    f.ret()
    run = native(f)
    for start, stop, step in [(0, 10, 1), (0, 10, 3), (3, 4, 5), (0, 0, 1), (5, 2, 1), (-4, 4, 2), (2, 9, 7)]:
        out, power, turns = np.zeros(2, np.int64), np.zeros(1, np.float32), range(start, stop, step)
        run(out=out, sum=power, start=start, stop=stop, step=step)
        assert (*out, *power) == (len(turns), sum(turns), 2.0 ** len(turns))


def test_loops_within_loops_and_conditions() -> None:
    """out[i·n + j] = i − j where i > j, in a loop that is known to run, within one that is not."""
    f = Function("nest", [("out", PTR), ("outer", PTR), ("n", I64)])
    with f.loop("i", 0, f.arg("n")) as i:
        with f.loop("j", 0, f.arg("n"), at_least_once=True) as j, f.when(i.index > j.index, "below"):
            f.store(i.index - j.index, f.offset(f.arg("out"), i.index * f.arg("n") + j.index, I64))
        count = f.load(f.arg("outer"), I64)
        f.store(count + 1, f.arg("outer"))
    f.ret()
    out = np.zeros((5, 5), np.int64)
    outer = np.zeros(1, np.int64)
    native(f)(out=out, outer=outer, n=5)
    assert outer[0] == 5
    i, j = np.indices((5, 5))
    assert np.array_equal(out, np.where(i > j, i - j, 0))


def test_a_loop_must_carry_what_it_was_given() -> None:
    f = Function("f", [])
    with (
        pytest.raises(ValueError, match="loop i carries 1 values, but was given 0"),
        f.loop("i", 0, 3, carry=[f.constant(0)]) as i,
    ):
        i.carry()


def test_integer_arithmetic_is_c_s() -> None:
    f = Function("f", [("a", I64), ("b", I64), ("out", PTR)])
    a, b = f.arg("a"), f.arg("b")
    results = [
        a + b,
        a - b,
        a * b,
        a // b,
        a % b,
        7 - a,
        f.minimum(a, b),
        f.maximum(a, b),
        f.select((a < b) | a.equals(b), a, 9),
    ]
    results += [f.select((a >= b) & (b > 0), 1, 0), f.select(a <= b, 1, 0)]
    for at, value in enumerate(results):
        f.store(value, f.offset(f.arg("out"), at, I64))
    f.ret()
    run, out = native(f), np.zeros(len(results), np.int64)
    for a, b in [(7, 2), (-7, 2), (2, 7), (5, 5), (0, 3)]:
        run(a=a, b=b, out=out)
        quotient = int(a / b)
        expected = [a + b, a - b, a * b, quotient, a - quotient * b, 7 - a, min(a, b), max(a, b), a if a <= b else 9]
        assert out.tolist() == [*expected, int(a >= b and b > 0), int(a <= b)]


@pytest.mark.parametrize("lanes", LANES)
def test_multiply_add_rounds_once(lanes: int) -> None:
    f = Function("f", [("x", PTR)])
    x = f.arg("x")
    a, b, c = (f.load(x + i * lanes, vector_of(lanes)) for i in range(3))
    f.store(f.fma(a, b, c), x)
    f.ret()
    tiny = np.float32(2**-23)
    x = np.repeat(np.array([1 + tiny, 1 - tiny, -1], np.float32), lanes)
    native(f, lanes)(x=x)
    assert (x[:lanes] == -np.float32(2**-46)).all()  # 0 if the product were rounded


@pytest.mark.parametrize("lanes", LANES)
def test_splats_shuffles_and_lanes(lanes: int) -> None:
    f = Function("f", [("x", PTR), ("y", PTR)])
    x, y = f.arg("x"), f.arg("y")
    a, b = f.load(x, vector_of(lanes)), f.load(x + lanes, vector_of(lanes))
    f.store(f.shuffle(a, b, [2 * lanes - 1 - i for i in range(lanes)]), y)
    f.store(f.splat(f.lane(a, lanes - 1), lanes), y + lanes)
    f.ret()
    source, target = numbers(2 * lanes), np.zeros(2 * lanes, np.float32)
    native(f, lanes)(x=source, y=target)
    assert np.array_equal(target, [*source[::-1][:lanes], *[source[lanes - 1]] * lanes])


def test_a_module_holds_every_callee_once() -> None:
    leaf = Function("leaf", [("x", PTR)], private=True)
    x = leaf.load(leaf.arg("x"), F32)
    leaf.store(leaf.fma(x, x, x), leaf.arg("x"))
    leaf.ret()
    twig = Function("twig", [("x", PTR)], private=True)
    twig.call(leaf, twig.arg("x"))
    twig.ret()
    root = Function("root", [("x", PTR)])
    for callee in (twig, leaf, twig):
        root.call(callee, root.arg("x"))
    root.ret()
    text = module_text(root, 8)
    assert [text.count(f"define internal void @{name}(") for name in ("leaf", "twig")] == [1, 1]
    assert "define void @root(" in text and text.count("declare float @llvm.fma.f32") == 1
    assert '"min-legal-vector-width"="256"' in text
    x = np.array([2.0], np.float32)
    native(root)(x=x)
    assert x[0] == ((2 * 2 + 2) ** 2 + 6) ** 2 + 42  # x → x² + x, three times


# --- rows


@pytest.mark.parametrize("lanes", LANES)
def test_rows_of_every_length(lanes: int) -> None:
    """Copies touch the row and nothing else; zeros may run over by less than a vector."""
    arguments = [("target", PTR), ("source", PTR), ("count", I64), ("stride", I64)]
    made = {}
    for name in ("copy", "twice", "zero", "gather", "scatter"):
        f = Function(name, arguments)
        target, source, count, stride = (f.arg(n) for n, _ in arguments)
        if name in ("copy", "twice"):
            copy_row(f, target, source, count, lanes, None if name == "copy" else lambda v, _: v + v)
        elif name == "zero":
            zero_row(f, target, count, lanes)
        elif name == "gather":
            gather_row(f, target, source, count, stride)
        else:
            scatter_row(f, target, source, count, stride, lambda v, _: v + v)
        f.ret()
        made[name] = native(f, lanes)
    for count in range(4 * lanes + 3):
        row = numbers(count, count)
        source = empty(count)
        inside(source)[:] = row
        for name, factor in (("copy", 1), ("twice", 2)):
            target = empty(count)
            made[name](target=inside(target), source=inside(source), count=count)
            assert np.array_equal(inside(target), factor * row), f"{name} {count}"
            assert untouched(target[:MARGIN], target[MARGIN + count :])
        target = empty(count)
        made["zero"](target=inside(target), count=count)
        assert not inside(target).any() and untouched(target[:MARGIN], target[MARGIN + count + lanes :])
        for stride in (1, 2, 5):
            wide = empty(max(0, count - 1) * stride + 1)
            inside(wide)[: count * stride : stride] = row
            target = empty(count)
            made["gather"](target=inside(target), source=inside(wide), count=count, stride=stride)
            assert np.array_equal(inside(target), row) and untouched(target[:MARGIN], target[MARGIN + count :])
            wide[:] = NAN
            made["scatter"](target=inside(wide), source=inside(source), count=count, stride=stride)
            assert np.array_equal(inside(wide)[: count * stride : stride], 2 * row)
            inside(wide)[: count * stride : stride] = NAN
            assert untouched(wide)


@pytest.mark.parametrize("lanes", LANES)
def test_rows_leave_scratch_with_their_bias(lanes: int) -> None:
    run = native(store_rows_function(lanes), lanes)
    bias, rows, source_pitch = np.array([100.0], np.float32), 3, 80
    source = np.full((rows + 1, source_pitch), NAN)
    for count in range(2 * lanes + 2):
        source[:rows, :count] = numbers(rows * count, count).reshape(rows, count)
        for stride in (1, 3):
            target_pitch = count * stride + 7
            for given in (bias, 0):
                target = empty(rows * target_pitch)
                where = {"target_pitch": target_pitch, "source_pitch": source_pitch, "stride": stride, "bias": given}
                run(target=inside(target), source=source, rows=rows, count=count, **where)
                shown = inside(target).reshape(rows, target_pitch)[:, : count * stride : stride]
                assert np.array_equal(shown, source[:rows, :count] + (100 if given is bias else 0))
                shown[:] = NAN
                assert untouched(target)


@pytest.mark.skipif(16 not in LANES, reason="masks are for machines of 16 lanes")
def test_masks_leave_the_other_lanes_alone() -> None:
    f = Function("masked", [("x", PTR), ("y", PTR), ("count", I64)])
    mask = f.lanes_below(f.arg("count"), 16)
    f.store_masked(f.load(f.arg("x"), vector_of(16)), f.arg("y"), mask)
    f.ret()
    run, x = native(f, 16), numbers(16)
    for count in range(17):
        y = empty(16)
        run(x=x, y=inside(y), count=count)
        assert np.array_equal(inside(y)[:count], x[:count])
        inside(y)[:count] = NAN
        assert untouched(y)


# --- tiles

SHAPES = [(1, 1), (1, 4), (2, 3), (3, 2), (5, 1), (6, 4), (4, 3)]


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize(("rows", "vectors"), SHAPES)
def test_outer_product_tile(rows: int, vectors: int, lanes: int) -> None:
    run = native(outer_product_tile(rows, vectors, lanes), lanes)
    width, pitch = vectors * lanes, vectors * lanes + 5
    bias = numbers(rows, 3)
    for terms in (0, 1, 7):
        w, x = numbers(max(1, terms * rows), 1), numbers(400, 2)
        offsets = np.array([(37 * k) % 200 for k in range(terms)] or [0], np.int64)
        sums = np.zeros((rows, width), np.float32)
        for k in range(terms):
            sums += np.outer(w[k * rows : (k + 1) * rows], x[offsets[k] : offsets[k] + width])
        for mode in (0, ADD, BIAS, ADD | BIAS):
            c = np.full((rows, pitch), NAN)
            c[:, :width] = 1000 if mode & ADD else NAN
            # Prefetches may name any address.
            hints = {"ahead": x, "ahead_offsets": offsets}
            run(w=w, x=x, offsets=offsets, terms=terms, c=c, pitch=pitch, mode=mode, bias=bias, **hints)
            expected = sums + (1000 if mode & ADD else 0) + (bias[:, None] if mode & BIAS else 0)
            assert np.array_equal(c[:, :width], expected), f"{terms} terms, mode {mode}"
            assert untouched(c[:, width:])


@pytest.mark.parametrize("odd", [0, 1])
@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize(("rows", "vectors"), SHAPES)
def test_panel_tile(rows: int, vectors: int, lanes: int, odd: int) -> None:
    """Pixels at one distance from term to term; one more than vectors hold, if odd."""
    run = native(panel_tile(rows, vectors, lanes, bool(odd)), lanes)
    width, x_pitch, pitch = vectors * lanes + odd, vectors * lanes + 3, vectors * lanes + 5
    bias = numbers(rows, 3)
    for terms in (1, 7):
        w, x = numbers(terms * rows, 1), numbers(terms * x_pitch + width, 2)
        pixels = np.stack([x[k * x_pitch : k * x_pitch + width] for k in range(terms)])
        sums = w.reshape(terms, rows).T @ pixels
        for mode in (0, ADD, BIAS, ADD | BIAS):
            c = np.full((rows, pitch), NAN)
            c[:, :width] = 1000 if mode & ADD else NAN
            # Prefetches may name any address.
            hints = {"ahead": x, "ahead_pitch": 100_000}
            run(w=w, x=x, c=c, bias=bias, terms=terms, x_pitch=x_pitch, pitch=pitch, mode=mode, **hints)
            expected = sums + (1000 if mode & ADD else 0) + (bias[:, None] if mode & BIAS else 0)
            assert np.array_equal(c[:, :width], expected), f"{terms} terms, mode {mode}"
            assert untouched(c[:, width:])


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize(("left", "right"), [(1, 1), (1, 12), (2, 5), (4, 6), (3, 7), (5, 5), (6, 3)])
def test_dot_product_tile(left: int, right: int, lanes: int) -> None:
    run = native(dot_product_tile(left, right, lanes), lanes)
    pitch, size = 100, -(-left * right // lanes) * lanes
    image_pitch = 500
    for length, images in ((0, 1), (lanes, 1), (3 * lanes, 1), (2 * lanes, 3), (lanes, 0)):
        a, b = numbers(images * image_pitch + 700, 1), numbers(images * image_pitch + 300, 2)
        offsets = np.array([(41 * j) % 150 for j in range(right)], np.int64)
        sums = empty(size)
        inside(sums)[:] = 7
        where = {"a_pitch": pitch, "image_pitch": image_pitch}
        run(a=a, b=b, offsets=offsets, length=length, images=images, sums=inside(sums), **where)
        expected = np.full((left, right), 7, np.float32)
        for n, i, j in np.ndindex(images, left, right):
            of_a, of_b = n * image_pitch + i * pitch, n * image_pitch + offsets[j]
            expected[i, j] += np.dot(a[of_a : of_a + length], b[of_b : of_b + length])
        assert np.array_equal(inside(sums)[: left * right], expected.ravel())
        assert untouched(sums[:MARGIN], sums[MARGIN + size :])


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 16, 17, 30])
def test_horizontal_sums_are_in_order(count: int, lanes: int) -> None:
    f = Function("sums", [("x", PTR), ("y", PTR)])
    vectors = [f.load(f.arg("x") + i * lanes, vector_of(lanes)) for i in range(count)]
    results = horizontal_sums(f, vectors, lanes)
    for i, result in enumerate(results):
        f.store(result, f.arg("y") + i * lanes)
    f.ret()
    x, y = numbers(count * lanes), np.full(len(results) * lanes, NAN)
    native(f, lanes)(x=x, y=y)
    assert np.array_equal(y[:count], x.reshape(count, lanes).sum(axis=1))
    assert not y[count:].any()
