"""Batch norm of a training step, with the activation that follows it, for channels-last tensors; and its gradients.

forward:    y = a((x − mean) ∕ √(variance + ε) · weight + bias), with the mean and variance of the batch
backward:   g' = g where a let x through, 0 elsewhere;  dbias = Σ g';  dweight = Σ g'·(x − mean) · s,  s = 1 ∕ √(… + ε)
            dx = (g' − dbias ∕ n − (x − mean) · s · dweight ∕ n) · weight · s

The activation a is ReLU, ReLU6, or none. A tensor is a matrix of `rows` pixels by channels, cut into blocks of rows,
and each of the two ways is three jobs:

    for every block, a few vectors of channels at a time:   sums of the block              by all threads
    for every vector of channels:                           blocks' sums added up, one after the other
    for every block, a few vectors of channels at a time:   outputs                        by all threads

How it is cut depends on the sizes alone, so that the sums have the same bits on any number of threads. Variances are
sums of squares around the mean of their block, which lies in the cache, joined block by block (Chan, Golub and LeVeque
1979): no digits cancel. torch would read and write the tensor once more for the activation, each way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from hubel.engine.between.work import Work, kernel_function
from hubel.engine.compile import compiled
from hubel.engine.ir import F32, I64, PTR, Function, Value, module_text, vector_of
from hubel.engine.ir.activation import STOPS, activated, let_through
from hubel.engine.machine import Machine
from hubel.engine.threads import RESERVED_WORDS, Job

# What a block of rows may take of the L2 cache: it is read twice.
BLOCK_BYTES = 2**17
# Vectors of channels at a time: sums enough to hide the latency of adding.
VECTORS = 4
_WORDS = ("rows", "channels", "per_block", "blocks", "shares")


def batch_normed(rows: int, channels: int, eps: float, momentum: float, activation: str) -> Work:
    """Base pointers: x in p0; y in p3; p1 eight addresses of `channels` numbers each. Given: weight, bias, and the mean
    and variance that run along; found: the batch's mean and 1 ∕ √(variance + ε), and those that run along after this
    step.
    """
    name = f"batch_norm_{float(eps)!r}_{float(momentum)!r}_{activation}"
    return _work(name, rows, channels, lambda lanes: forward_functions(eps, momentum, activation, lanes))


def batch_norm_gradients(rows: int, channels: int, activation: str) -> Work:
    """Base pointers: g in p0, x in p2, dx in p3; p1 six addresses: y, and of `channels` numbers each weight, mean,
    1 ∕ √(variance + ε), and the results dweight and dbias.
    """
    return _work(
        f"batch_norm_gradients_{activation}", rows, channels, lambda lanes: backward_functions(activation, lanes)
    )


def fits(channels: int) -> bool:
    """Whether there are channels enough for a vector."""
    return channels >= Machine.detect().lanes


Kernels = dict[str, Callable[[int], Function]]


def _work(name: str, rows: int, channels: int, write: Callable[[int], Kernels]) -> Work:
    machine = Machine.detect()
    lanes = machine.lanes
    together = next(v for v in (VECTORS, 2, 1) if v * lanes <= channels)
    per_block = max(8, BLOCK_BYTES // (4 * channels))
    blocks = -(-rows // per_block)
    shares = np.array(_shares(rows, per_block), np.float32)
    words = (rows, channels, per_block, blocks, shares.ctypes.data)
    kernels = write(lanes)
    jobs, kept = [], []
    for part, items in (("sums", blocks), ("joined", -(-channels // lanes)), ("outputs", blocks)):
        key = f"{name}_{part}_{together}_{machine.isa}"
        library = compiled(key, lambda part=part: module_text(kernels[part](together), lanes), machine)
        jobs.append(Job(library.address("kernel"), items, 1, words))
        kept.append(library)
    # Of each block two sums a channel, and three coefficients.
    shared = 4 * channels * (2 * blocks + 3)
    return Work(tuple(jobs), (shares, *kept), 0, shared)


def _shares(rows: int, per_block: int) -> list[tuple[float, float, float, float]]:
    """For each block: 1 ∕ its rows, its share of the rows up to its end, what a squared distance of means counts, and
    (in the first) 1 ∕ all rows; so that no kernel divides integers.
    """
    found = []
    for start in range(0, rows, per_block):
        here = min(per_block, rows - start)
        found.append((1 / here, here / (start + here), start * here / (start + here), 1 / rows))
    return found


class _Kernel:
    """What all six kernels have: words, base pointers, and loops over a block."""

    def __init__(self, lanes: int, together: int) -> None:
        self.f, self.lanes, self.together = kernel_function(), lanes, together
        f, args = self.f, self.f.arg("args")
        self.p = [f.word(args, i, f"p{i}", PTR) for i in range(5)]
        words = {n: f.word(args, RESERVED_WORDS + i, n, I64) for i, n in enumerate(_WORDS[:4])}
        self.rows, self.channels, self.per_block, self.blocks = (words[n] for n in _WORDS[:4])
        self.shares = f.word(args, RESERVED_WORDS + 4, "shares", PTR)
        # Of each block two sums a channel; behind them what the outputs need.
        self.sums = self.p[4]
        self.coefficients = self.sums + self.blocks * self.channels * 2

    def address(self, index: int, name: str) -> Value:
        """The address number `index` of those that p1 points to."""
        return self.f.word(self.p[1], index, name, PTR)

    def vector(self, at: Value) -> Value:
        return self.f.load(at, vector_of(self.lanes))

    def share(self, block: Value | int, which: int) -> Value:
        """A number of `_shares` in every lane."""
        place = self.shares + (self.f.constant(block) * 4 + which)
        return self.f.splat(self.f.load(place, F32), self.lanes)

    @contextmanager
    def blocks_and_channels(self) -> Iterator[tuple[Value, Value, Value, Value]]:
        """(block, its first row, the row behind its last, first of a few vectors of channels)"""
        f, width = self.f, self.together * self.lanes
        with f.loop("block", f.arg("begin"), f.arg("end")) as block:
            first = block.index * self.per_block
            last = f.minimum(first + self.per_block, self.rows)
            with f.loop("c", 0, self.channels, width) as c:
                # The last vectors reach back: what two of them compute is the same.
                yield block.index, first, last, f.minimum(c.index, self.channels - width)
        f.ret()

    @contextmanager
    def vectors(self) -> Iterator[Value]:
        """The first channel of each vector."""
        f = self.f
        with f.loop("v", f.arg("begin"), f.arg("end")) as v:
            yield f.minimum(v.index * self.lanes, self.channels - self.lanes)
        f.ret()

    def each(self, at: Value) -> list[Value]:
        """The vectors that lie at this place of a row."""
        return [self.vector(at + i * self.lanes) for i in range(self.together)]

    def put(self, values: Sequence[Value], at: Value) -> None:
        for i, value in enumerate(values):
            self.f.store(value, at + i * self.lanes)


def forward_functions(eps: float, momentum: float, activation: str, lanes: int) -> Kernels:
    """The three kernels, by job; each takes how many vectors go together."""

    def sums(together: int) -> Function:
        k = _Kernel(lanes, together)
        f, x = k.f, k.p[0]
        zeros = [f.constant(0.0, vector_of(lanes))] * together
        with k.blocks_and_channels() as (block, first, last, c):
            with f.loop("row", first, last, carry=zeros, at_least_once=True) as row:
                numbers = k.each(x + (row.index * k.channels + c))
                row.carry(*(total + n for total, n in zip(row.carried, numbers, strict=True)))
            means = [total * k.share(block, 0) for total in row.results]
            with f.loop("again", first, last, carry=zeros, at_least_once=True) as again:
                apart = [n - m for n, m in zip(k.each(x + (again.index * k.channels + c)), means, strict=True)]
                again.carry(*(f.fma(d, d, total) for total, d in zip(again.carried, apart, strict=True)))
            to = k.sums + (block * k.channels * 2 + c)
            k.put(means, to)
            k.put(again.results, to + k.channels)
        return f

    def joined(together: int) -> Function:
        k = _Kernel(lanes, together)
        f, zero = k.f, k.f.constant(0.0, vector_of(lanes))
        given = [k.address(i, name) for i, name in enumerate(("weight", "bias", "mean", "variance"))]
        found = [k.address(4 + i, f"found_{i}") for i in range(4)]
        with k.vectors() as c:
            with f.loop("block", 0, k.blocks, carry=[zero, zero], at_least_once=True) as block:
                mean, squares = block.carried
                at = k.sums + (block.index * k.channels * 2 + c)
                apart = k.vector(at) - mean
                squares = squares + k.vector(at + k.channels)
                block.carry(
                    f.fma(apart, k.share(block.index, 1), mean),
                    f.fma(apart * apart, k.share(block.index, 2), squares),
                )
            mean, squares = block.results
            variance = squares * k.share(0, 3)
            intrinsic = f"llvm.sqrt.v{lanes}f32"
            f.declarations.add(f"declare {mean.type} @{intrinsic}({mean.type})")
            lifted = variance + eps
            root = f._emit(mean.type, f"call {mean.type} @{intrinsic}({mean.type} {lifted.text})", "root")
            spread = f.binary("div", f.constant(1.0, mean.type), root)
            weight, bias, old_mean, old_variance = (k.vector(at + c) for at in given)
            # The variance that runs along is that of a sample: n ∕ (n − 1) times the batch's.
            count = f._emit(F32, f"sitofp i64 {(k.rows - 1).text} to float", "count")
            sample = f.binary("div", squares, f.splat(count, lanes))
            results = [mean, spread]
            results += [
                f.fma(new - old, f.constant(momentum, mean.type), old)
                for new, old in ((mean, old_mean), (sample, old_variance))
            ]
            for result, at in zip(results, found, strict=True):
                f.store(result, at + c)
            for i, value in enumerate((mean, spread * weight, bias)):
                f.store(value, k.coefficients + (k.channels * i + c))
        return f

    def outputs(together: int) -> Function:
        k = _Kernel(lanes, together)
        f, x, y = k.f, k.p[0], k.p[3]
        with k.blocks_and_channels() as (_, first, last, c):
            means, scales, biases = (k.each(k.coefficients + (k.channels * i + c)) for i in range(3))
            with f.loop("row", first, last, at_least_once=True) as row:
                at = row.index * k.channels + c
                each = zip(k.each(x + at), means, scales, biases, strict=True)
                # The difference first: a mean far from zero costs no digits.
                values = [f.fma(n - m, s, b) for n, m, s, b in each]
                k.put([activated(f, activation, 0.0, v) if activation else v for v in values], y + at)
        return f

    return {"sums": sums, "joined": joined, "outputs": outputs}


def backward_functions(activation: str, lanes: int) -> Kernels:
    """The three kernels, by job; each takes how many vectors go together."""

    def gradient(k: _Kernel, at: Value) -> list[Value]:
        gradients = k.each(k.p[0] + at)
        if not STOPS[activation]:
            return gradients
        outputs = k.each(k.address(0, "y") + at)
        return [let_through(k.f, activation, g, y) for g, y in zip(gradients, outputs, strict=True)]

    def sums(together: int) -> Function:
        k = _Kernel(lanes, together)
        f, x = k.f, k.p[2]
        zeros = [f.constant(0.0, vector_of(lanes))] * (2 * together)
        with k.blocks_and_channels() as (block, first, last, c):
            means = k.each(k.address(2, "mean") + c)
            with f.loop("row", first, last, carry=zeros, at_least_once=True) as row:
                at = row.index * k.channels + c
                passed, numbers = gradient(k, at), k.each(x + at)
                plain, weighted = row.carried[:together], row.carried[together:]
                row.carry(
                    *(total + g for total, g in zip(plain, passed, strict=True)),
                    *(f.fma(g, n - m, t) for t, g, n, m in zip(weighted, passed, numbers, means, strict=True)),
                )
            to = k.sums + (block * k.channels * 2 + c)
            k.put(row.results[:together], to)
            k.put(row.results[together:], to + k.channels)
        return f

    def joined(together: int) -> Function:
        k = _Kernel(lanes, together)
        f, zero = k.f, k.f.constant(0.0, vector_of(lanes))
        at_weight, at_spread = k.address(1, "weight"), k.address(3, "spread")
        for_weight, for_bias = k.address(4, "for_weight"), k.address(5, "for_bias")
        with k.vectors() as c:
            with f.loop("block", 0, k.blocks, carry=[zero, zero], at_least_once=True) as block:
                at = k.sums + (block.index * k.channels * 2 + c)
                plain, weighted = block.carried
                block.carry(plain + k.vector(at), weighted + k.vector(at + k.channels))
            plain, weighted = block.results
            weight, spread = k.vector(at_weight + c), k.vector(at_spread + c)
            to_weight = weighted * spread
            f.store(to_weight, for_weight + c)
            f.store(plain, for_bias + c)
            each = k.share(0, 3)
            for i, value in enumerate((weight * spread, plain * each, to_weight * spread * each)):
                f.store(value, k.coefficients + (k.channels * i + c))
        return f

    def outputs(together: int) -> Function:
        k = _Kernel(lanes, together)
        f, x, dx = k.f, k.p[2], k.p[3]
        with k.blocks_and_channels() as (_, first, last, c):
            scales, shifts, slopes = (k.each(k.coefficients + (k.channels * i + c)) for i in range(3))
            means = k.each(k.address(2, "mean") + c)
            with f.loop("row", first, last, at_least_once=True) as row:
                at = row.index * k.channels + c
                k.put(
                    [
                        (g - t - (n - m) * d) * s
                        for g, n, m, s, t, d in zip(
                            gradient(k, at), k.each(x + at), means, scales, shifts, slopes, strict=True
                        )
                    ],
                    dx + at,
                )
        return f

    return {"sums": sums, "joined": joined, "outputs": outputs}
