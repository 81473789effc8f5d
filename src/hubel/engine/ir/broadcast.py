"""Register tiles whose lanes are output channels: each step of the sum takes `vectors` vectors of weights and one
pixel of each of several places, wherever these lie.

    for k in terms:  for p in pixels:  for v in vectors:  acc[p][v] += x[offset[k] + place(p)] · w[k][v]

The pixels are two runs, each with one distance between neighbours: halves of a row, or pieces of two rows. So they
need two pointers and a few multiples of the distance, and the stride of a convolution costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hubel.engine.ir.function import F32, I64, PTR, Function, Value, vector_of

# Accumulators of a tile that does two terms at a time; pixels of a tile that has a pointer for each.
SMALL, MOST_POINTERS = 14, 7
# Weights are asked for so many terms before they are read: the L2 cache answers within two, the L3 within eight.
TERMS_AHEAD = 8


def broadcast_tile(pixels: int, vectors: int, lanes: int) -> Function:
    """pixels_<n>(w, x, x2, offsets, sums, sums2, to, to2, bias, ahead, terms, apart, pitch, to_pitch): the sums of
    `pixels` pixels, the first half (rounded up) at x, the others at x2, neighbours `apart` bytes from each other.

    w: vectors·lanes weights a term, next to each other; offsets: for each term, in numbers, the pixels' place. to[p ·
    to_pitch + lane] = (sums[p · pitch + lane] + total) + bias[lane], where minus zeros change nothing. With each
    term are asked for: weights some terms further on, and the line at ahead[offset[k]].
    """
    pointers = [(n, PTR) for n in ("w", "x", "x2", "offsets", "sums", "sums2", "to", "to2", "bias", "ahead")]
    numbers = [(n, I64) for n in ("terms", "apart", "pitch", "to_pitch")]
    f = Function(f"pixels_{pixels}", [*pointers, *numbers], private=True)
    runs = [n for n in ((pixels + 1) // 2, pixels // 2) if n]
    places = _places(f, runs)
    zero, width = f.constant(0.0, vector_of(lanes)), vectors * lanes
    # Small tiles do two terms at a time: else there are more than four instructions a cycle.
    pairs = f.arg("terms") // 2 * 2 if pixels * vectors <= SMALL else f.constant(0)
    start = [f.arg("w")] + [zero] * (pixels * vectors)
    if pixels * vectors <= SMALL:
        with f.loop("pair", 0, pairs, 2, carry=start) as k:
            w, *acc = k.carried
            acc = _term(f, w, k.index, places, vectors, lanes, acc, ahead=True)
            acc = _term(f, w + width, k.index + 1, places, vectors, lanes, acc, ahead=False)
            k.carry(w + 2 * width, *acc)
        start = k.results
    with f.loop("k", pairs, f.arg("terms"), carry=start) as k:
        w, *acc = k.carried
        k.carry(w + width, *_term(f, w, k.index, places, vectors, lanes, acc, ahead=True))
    biases = [f.load(f.arg("bias") + v * lanes, vector_of(lanes), f"bias_{v}") for v in range(vectors)]
    at = iter(k.results[1:])
    for number, count in zip(("", "2"), runs, strict=False):
        for i in range(count):
            before, to = (f.arg(n + number) + f.arg(p) * i for n, p in (("sums", "pitch"), ("to", "to_pitch")))
            for v, bias in enumerate(biases):
                total = f.load(before + v * lanes, vector_of(lanes)) + next(at)
                f.store(total + bias, to + v * lanes)
    f.ret()
    return f


def _places(f: Function, runs: list[int]) -> Callable[[Value], Iterator[Value]]:
    """A function from a term's offset to the places of its pixels, in the fewest instructions."""
    apart = f.arg("apart")
    starts = [f.arg("x"), f.arg("x2")][: len(runs)]
    if sum(runs) <= MOST_POINTERS:
        pointers = [f.offset(s, apart * i, "i8") for s, count in zip(starts, runs, strict=True) for i in range(count)]
        return lambda offset: (pointer + offset for pointer in pointers)
    # The odd multiples of the distance: x86 addresses scale them by 2, 4 and 8.
    odd = {n: apart * n for n in range(1, runs[0], 2)}

    def places(offset: Value) -> Iterator[Value]:
        for start, count in zip(starts, runs, strict=True):
            yield (first := start + offset)
            for i in range(1, count):
                scale = i & -i
                yield f.offset(first, odd[i // scale] * scale, "i8")

    return places


def _term(
    f: Function,
    w: Value,
    k: Value,
    places: Callable[[Value], Iterator[Value]],
    vectors: int,
    lanes: int,
    sums: list[Value],
    ahead: bool,
) -> list[Value]:
    """The sums after one more term. ahead: ask for the line of pixels, too."""
    offset = f.load(f.offset(f.arg("offsets"), k, I64, "entry"), I64, "offset")
    if ahead:
        f.prefetch(f.arg("ahead") + offset)
    for line in range(0, vectors * lanes, 16):
        f.prefetch(w + (TERMS_AHEAD * vectors * lanes + line))
    weights = [f.load(w + v * lanes, vector_of(lanes), f"weights_{v}") for v in range(vectors)]
    after: list[Value] = []
    for place in places(offset):
        every = f.splat(f.load(place, F32, "pixel"), lanes, "pixels")
        for weight in weights:
            after.append(f.fma(every, weight, sums[len(after)], f"acc_{len(after)}"))
    return after
