"""Register tiles whose lanes are output channels: each step of the sum takes `vectors` vectors of weights and one
pixel of each of several places, wherever these lie.

    for k in terms:  for p in pixels:  for v in vectors:  acc[p][v] += x[offset[k] + place(p)] · w[k][v]

The pixels are two runs, each with one distance between neighbours: halves of a row, or pieces of two rows. So they
need two pointers and a few multiples of the distance, and the stride of a convolution costs nothing.
"""

from __future__ import annotations

from hubel.engine.ir.function import F32, I64, PTR, Function, Value, vector_of

# The second multiple of the distance between pixels that is kept beside the first; with both scaled by 2, 4 and 8 (as
# x86 addresses are), only multiples from 5 on need registers of their own.
_TRIPLE = 3
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
    multiples = {1: f.arg("apart")}
    for odd in range(_TRIPLE, runs[0], 2):
        multiples[odd] = f.arg("apart") * odd
    zero = f.constant(0.0, vector_of(lanes))
    starts = [f.arg("x"), f.arg("x2")][: len(runs)]
    with f.loop("k", 0, f.arg("terms"), carry=[f.arg("w")] + [zero] * (pixels * vectors)) as k:
        w, *acc = k.carried
        offset = f.load(f.offset(f.arg("offsets"), k.index, I64, "entry"), I64, "offset")
        f.prefetch(f.arg("ahead") + offset)
        for line in range(0, vectors * lanes, 16):
            f.prefetch(w + (TERMS_AHEAD * vectors * lanes + line))
        weights = [f.load(w + v * lanes, vector_of(lanes), f"weights_{v}") for v in range(vectors)]
        after = []
        for start, count in zip(starts, runs, strict=True):
            first = start + offset
            for i in range(count):
                pixel = f.load(_moved(f, first, i, multiples), F32, f"pixel_{i}")
                every = f.splat(pixel, lanes, f"pixels_{i}")
                for weight in weights:
                    after.append(f.fma(every, weight, acc[len(after)], f"acc_{len(after)}"))
        k.carry(w + vectors * lanes, *after)
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


def _moved(f: Function, first: Value, times: int, multiples: dict[int, Value]) -> Value:
    """The pointer moved by so many distances, as an x86 address can say it."""
    scale = times & -times if times else 0
    return f.offset(first, multiples[times // scale] * scale, "i8") if times else first
