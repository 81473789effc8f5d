"""Hubel's prepared call on an output that is there: what the engines for inference are compared with.

Weights packed beforehand, no dispatcher and no allocation, as those engines have it; in both of torch's layouts.
"""

from __future__ import annotations

import dataclasses
import math

import torch

from hubel.engine.invoke import prepare
from hubel.engine.problem import Direction
from hubel.errors import UnsupportedError
from hubel.lab.engines.door import Declined, Outputs, Tensors
from hubel.lab.shapes import Case
from hubel.lab.timing import Contender


def prepared(case: Case, tensors: Tensors) -> Contender | Declined:
    """`engine.prepare` and its Invocation, on the input as it lies."""
    if not case.is_forward:
        return Declined("gradients are compared through torch's operators")
    if case.transposed and tensors.b is not None:
        return Declined("a transposed convolution's bias is added by torch")
    from hubel.ops.accuracy import policy
    from hubel.ops.weights import room

    threads = torch.get_num_threads()
    x, w, b = tensors.x, tensors.w, tensors.b
    y = torch.full_like(tensors.dy, math.nan)
    # The gradient of the input reads dy and writes dx: what a transposed convolution reads and writes.
    strides = (y, w, x) if case.transposed else (x, w, y)
    problem = dataclasses.replace(case.problem, direction=Direction.INPUT_GRADIENT) if case.transposed else case.problem
    try:
        invocation = prepare(problem, *(tensor.stride() for tensor in strides), policy(threads))
    except UnsupportedError as error:
        return Declined(str(error))
    packed = room(invocation.packed_bytes)
    if invocation.packed_bytes:
        invocation.pack(w.data_ptr(), packed.data_ptr(), threads)
    run = invocation.prebound(threads)
    weights = packed if invocation.packed_bytes else w
    addresses = x.data_ptr(), weights.data_ptr(), 0 if b is None else b.data_ptr(), y.data_ptr()
    # The closure keeps alive what the addresses point to.
    alive = x, weights, b, y

    def call() -> Outputs:
        run(*addresses)
        return alive[3:]

    return Contender("hubel prepared", call)
