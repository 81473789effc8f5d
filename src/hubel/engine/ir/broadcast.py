"""Register tiles whose lanes are output channels: each step of the sum takes `vectors` vectors of weights and one
pixel of each of several places, wherever these lie.

    for k in terms:  for p in pixels:  for v in vectors:  acc[p][v] += x[offset[k] + place(p)] · w[k][v]

The pixels are two halves, each with one distance between neighbours: of a run of pixels, or pieces of two rows. So they
need two pointers and a few multiples of the distance, and the stride of a convolution costs nothing. A tile does a row
of such runs in one call: its weights stay in L1, and the pixels stream past.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

from hubel.engine.ir.epilogue import PLAIN, Ending
from hubel.engine.ir.function import F32, I64, PTR, Function, Value, vector_of

# Accumulators of a tile that does two terms at a time; pixels of a tile that has a pointer for each.
SMALL, MOST_POINTERS = 14, 7


def broadcast_tile(pixels: int, vectors: int, lanes: int, ending: Ending = PLAIN) -> Function:
    """pixels_<n>(w, x, x2, offsets, sums, sums2, to, to2, addends, next, operands, stretches, terms, skipped, apart,
    pitch, to_pitch, runs, run_x, run_sums, run_to, asked, done): the sums of `runs` times `pixels` pixels, over so many
    stretches of terms, between which some are skipped.

    In each run the first half (rounded up) lies at x, the others at x2, neighbours `apart` bytes from each other, and
    the next run's `run_x` bytes further. w: vectors·lanes weights a term, next to each other; offsets: for each term,
    in numbers, the pixels' place. to[p · to_pitch + lane] = (sums[p · pitch + lane] + total) + addends[lane], where
    minus zeros change nothing; of the next run these lie run_sums and run_to further. done: 1 to finish the sums as
    they are stored, if their ending is short. Each run asks for the lines that it stores to, and with each term for the
    last pixel that the next run meets there and for the weights at `next`, with each term `asked` bytes further: many
    at once would keep the tile waiting (512 channels at 7×7, 0.83 ms; Intel Xeon).
    """
    pointers = [(n, PTR) for n in ("w", "x", "x2", "offsets", "sums", "sums2", "to", "to2", "addends", "next")]
    numbers = (
        "stretches", "terms", "skipped", "apart", "pitch", "to_pitch", "runs", "run_x", "run_sums", "run_to", "asked",
        "done",
    )  # fmt: skip
    f = Function(f"pixels_{pixels}", [*pointers, *ending.parameters, *((n, I64) for n in numbers)], private=True)
    halves = [n for n in ((pixels + 1) // 2, pixels // 2) if n]
    carried = [f.arg(n) for n in ("x", "x2", "sums", "sums2", "to", "to2", "next")]
    with f.loop("run", 0, f.arg("runs"), carry=carried) as run:
        x, x2, sums, sums2, to, to2, following = run.carried
        for place, count in zip((to, to2), halves, strict=False):
            for i, at in product(range(count), range(0, vectors * lanes, 16)):
                f.prefetch(place + f.arg("to_pitch") * i + at, write=True)
        ahead = f.offset(x, f.arg("run_x") + f.arg("apart") * (pixels - 1), "i8", "ahead")
        places = _places(f, [x, x2][: len(halves)], halves)
        following, *totals = _totals(f, places, ahead, following, pixels, vectors, lanes)
        for done in (0, 1) if ending.short else (0,):
            with f.when(f.arg("done").equals(done), "finished" if done else "sums"):
                for v in range(vectors):
                    addend = f.load(f.arg("addends") + v * lanes, vector_of(lanes), "addend")
                    finish = ending.given(f).further(v * lanes).load_lanes(lanes)
                    each = iter(totals[v::vectors])
                    for before, target, count in zip((sums, sums2), (to, to2), halves, strict=False):
                        for i in range(count):
                            before_i, target_i = before + f.arg("pitch") * i, target + f.arg("to_pitch") * i + v * lanes
                            total = f.load(before_i + v * lanes, vector_of(lanes)) + next(each) + addend
                            f.store(finish(total, target_i) if done else total, target_i)
        x, x2 = (f.offset(place, f.arg("run_x"), "i8") for place in (x, x2))
        sums, sums2 = (place + f.arg("run_sums") for place in (sums, sums2))
        to, to2 = (place + f.arg("run_to") for place in (to, to2))
        run.carry(x, x2, sums, sums2, to, to2, following)
    f.ret()
    return f


def _totals(
    f: Function,
    places: Callable[[Value], Iterator[Value]],
    ahead: Value,
    following: Value,
    pixels: int,
    vectors: int,
    lanes: int,
) -> list[Value]:
    """Where the weights that are asked for go on, and the sums over all terms of one run."""
    zero, width = f.constant(0.0, vector_of(lanes)), vectors * lanes
    # Small tiles do two terms at a time: else there are more than four instructions a cycle.
    pairs = f.arg("terms") // 2 * 2 if pixels * vectors <= SMALL else f.constant(0)
    begin = [f.arg("offsets"), f.arg("w"), following] + [zero] * (pixels * vectors)
    with f.loop("stretch", 0, f.arg("stretches"), carry=begin, at_least_once=True) as stretch:
        offsets, *start = stretch.carried
        if pixels * vectors <= SMALL:
            twice = f.arg("asked") * 2
            with f.loop("pair", 0, pairs, 2, carry=start) as k:
                w, following, *acc = k.carried
                f.prefetch(following)
                acc = _term(f, w, offsets, k.index, places, vectors, lanes, acc, ahead)
                acc = _term(f, w + width, offsets, k.index + 1, places, vectors, lanes, acc)
                k.carry(w + 2 * width, f.offset(following, twice, "i8"), *acc)
            start = k.results
        with f.loop("k", pairs, f.arg("terms"), carry=start) as k:
            w, following, *acc = k.carried
            f.prefetch(following)
            acc = _term(f, w, offsets, k.index, places, vectors, lanes, acc, ahead)
            k.carry(w + width, f.offset(following, f.arg("asked"), "i8"), *acc)
        w, *after = k.results
        offsets = f.offset(offsets, f.arg("terms") + f.arg("skipped"), I64)
        stretch.carry(offsets, w + f.arg("skipped") * width, *after)
    return stretch.results[2:]


def _places(f: Function, starts: list[Value], counts: list[int]) -> Callable[[Value], Iterator[Value]]:
    """A function from a term's offset to the places of its pixels, in the fewest instructions."""
    apart = f.arg("apart")
    if sum(counts) <= MOST_POINTERS:
        pointers = [f.offset(s, apart * i, "i8") for s, count in zip(starts, counts, strict=True) for i in range(count)]
        return lambda offset: (pointer + offset for pointer in pointers)
    # The odd multiples of the distance: x86 addresses scale them by 2, 4 and 8.
    odd = {n: apart * n for n in range(1, counts[0], 2)}

    def places(offset: Value) -> Iterator[Value]:
        for start, count in zip(starts, counts, strict=True):
            yield (first := start + offset)
            for i in range(1, count):
                scale = i & -i
                yield f.offset(first, odd[i // scale] * scale, "i8")

    return places


def _term(
    f: Function,
    w: Value,
    offsets: Value,
    k: Value,
    places: Callable[[Value], Iterator[Value]],
    vectors: int,
    lanes: int,
    sums: list[Value],
    ahead: Value | None = None,
) -> list[Value]:
    """The sums after one more term. ahead: where a line of pixels is asked for, too."""
    offset = f.load(f.offset(offsets, k, I64, "entry"), I64, "offset")
    if ahead is not None:
        f.prefetch(ahead + offset)
    weights = [f.load(w + v * lanes, vector_of(lanes), f"weights_{v}") for v in range(vectors)]
    after: list[Value] = []
    for place in places(offset):
        every = f.splat(f.load(place, F32, "pixel"), lanes, "pixels")
        for weight in weights:
            after.append(f.fma(every, weight, sums[len(after)], f"acc_{len(after)}"))
    return after
