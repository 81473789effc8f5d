"""Each operator of a network as jobs. `LOWER` is written out; a function takes the binder and a node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

from hubel.engine.between import Work, layer_normed, mapped, pooled, softmaxed
from hubel.engine.invoke import Invocation, prepare
from hubel.engine.spec import ConvSpec
from hubel.graph.binder import ABSOLUTE, NULL, Address, Binder, Operands, Place, packed_strides, reshaped, strided_view
from hubel.graph.network import Node
from hubel.graph.operators import convolution, problem_of, windows


def conv(b: Binder, node: Node) -> None:
    shapes = [b.shapes[name] if name else () for name in node.inputs]
    spec, transposed = convolution(b.attributes(node), shapes)
    x, y = b.place(node.inputs[0]), b.new(node.name)
    if node.name in b.layouts.turned and x.channels_last != y.channels_last:
        x = b.turned(node.inputs[0], node)
    _convolve(b, node, spec, transposed, x, y, _residual(b, node, y))


def linear(b: Binder, node: Node) -> None:
    """A 1×1 convolution: rows of features are pixels."""
    x, y = b.contiguous(node.inputs[0], node), b.new(node.name)
    features, outputs = b.shapes[node.operand(1)][::-1]
    pixels = prod(x.shape[:-1])
    spec = ConvSpec(1, features, outputs, (pixels,), 1)
    residual = _residual(b, node, y)
    x = replace(x, shape=(1, features, pixels), strides=(features * pixels, 1, features))
    y = replace(y, shape=(1, outputs, pixels), strides=(outputs * pixels, 1, outputs))
    _convolve(b, node, spec, False, x, y, residual)


def _residual(b: Binder, node: Node, y: Place) -> Place | None:
    """The tensor that is added, with the strides of the output: copied where it lies otherwise."""
    name = node.operand(3)
    if not name:
        return None
    place = b.place(name)
    if place.strides == y.strides and place.buffer.base != ABSOLUTE:
        return place
    target = b.room(y)
    copy(b, node, place, target)
    return target


def _convolve(
    b: Binder, node: Node, spec: ConvSpec, transposed: bool, x: Place, y: Place, residual: Place | None
) -> None:
    bias, problem = node.operand(2), problem_of(node, spec, transposed)
    epilogue = problem.epilogue
    shape = b.shapes[node.operand(1)]
    w = packed_strides(shape) if len(shape) > 2 else (*packed_strides(shape), 1)
    strides = (y.strides, w, x.strides) if transposed else (x.strides, w, y.strides)
    invocation: Invocation = prepare(problem, *strides, b.policy)
    packed = Address(ABSOLUTE, b.weights.packed(node.operand(1), invocation, b.policy.threads))
    third: Address | Operands = b.constant(bias)
    if epilogue is not None and epilogue.scale:
        third = Operands(NULL, Address(ABSOLUTE, b.weights.ones(y.shape[1])), third, None, y)
    elif epilogue is not None:
        third = Operands(third, NULL, NULL, residual, y)
    plan = invocation.plan
    b.add(node, invocation, x, packed, third, y, how=f"{plan.problem} {plan.algorithm}")


def affine(b: Binder, node: Node) -> None:
    x = b.place(node.inputs[0])
    y = _in_place_or_new(b, node, node.inputs[0])
    per_channel = tuple(1 if axis == 1 else 0 for axis in range(len(x.shape)))
    scale, shift = (b.constant(name) for name in node.inputs[1:])
    work = mapped("affine", x.shape, y.strides, x.strides, per_channel, per_channel, **_ending(node))
    b.add(node, work, x, scale, shift, y, how="affine")


def activation(b: Binder, node: Node) -> None:
    x = b.place(node.inputs[0])
    y = _in_place_or_new(b, node, node.inputs[0])
    b.add(node, mapped("copy", x.shape, y.strides, x.strides, **_ending(node)), x, NULL, NULL, y, how="activation")


def binary(b: Binder, node: Node) -> None:
    shape = b.shapes[node.name]
    same = [name for name in node.inputs if name in b.places and b.shapes[name] == shape]
    y = _in_place_or_new(b, node, *same)
    pointers, strides = [], []
    for name in node.inputs:
        place = b.place(name)
        pointers.append(place)
        wide = (0 if n == 1 else s for n, s in zip(place.shape, place.strides, strict=True))
        strides.append((0,) * (len(shape) - len(place.shape)) + tuple(wide))
    work = mapped(node["kind"], shape, y.strides, *strides, **_ending(node))
    b.add(node, work, *pointers, NULL, y, how=node["kind"])


def pool(b: Binder, node: Node) -> None:
    node = b.attributes(node)
    x, wanted = b.place(node.inputs[0]), b.new(node.name)
    # Kernels read and write alike: what lies otherwise is turned afterwards, when there is less of it.
    one_way = min(wanted.shape[1], prod(wanted.shape[2:])) > 1
    turns = one_way and x.channels_last != wanted.channels_last
    y = b.room(wanted.laid_out(x.channels_last)) if turns else wanted
    down, across = windows(node, x.shape)
    source, target = (p.strides if len(p.shape) == 4 else (*p.strides[:2], 0, p.strides[2]) for p in (x, y))
    kind = node.get("kind", "mean")
    work = pooled(kind, x.shape[0], x.shape[1], down, across, source, target, node.get("divisor", 0))
    b.add(node, work, x, NULL, NULL, y, how=f"{kind} pool")
    if y is not wanted:
        copy(b, node, y, wanted)


def layer_norm(b: Binder, node: Node) -> None:
    x = b.contiguous(node.inputs[0], node)
    y = _in_place_or_new(b, node, node.inputs[0])
    weight, bias = node.operand(1), node.operand(2)
    work = layer_normed(prod(x.shape[:-1]), x.shape[-1], node["eps"], bool(weight), bool(bias))
    b.add(node, work, x, b.constant(weight), b.constant(bias), y, how="layer norm")


def softmax(b: Binder, node: Node) -> None:
    x = b.contiguous(node.inputs[0], node)
    y = _in_place_or_new(b, node, node.inputs[0])
    b.add(node, softmaxed(prod(x.shape[:-1]), x.shape[-1]), x, NULL, NULL, y, how="softmax")


def concat(b: Binder, node: Node) -> None:
    """What was not written in place is copied."""
    y, at, axis = b.new(node.name), 0, node["dim"]
    # A shorter concatenation that is the beginning of this one has written its part.
    begun = [b.made_by(name).inputs for name, home in b.homes.items() if home == (node.name, 0)]
    done = max((len(names) for names in begun if names == node.inputs[: len(names)]), default=0)
    for i, name in enumerate(node.inputs):
        size = b.shapes[name][axis]
        part = Place(y.buffer, y.offset + at * y.strides[axis], b.shapes[name], y.strides)
        at += size
        at_home = name in b.places and b.places[name].buffer is y.buffer and b.places[name].offset == part.offset
        if i >= done and not at_home:
            copy(b, node, b.place(name), part)


def view(b: Binder, node: Node) -> None:
    """Reshapes, slices and permutations: the same memory, or a copy where strides cannot say it."""
    source = b.place(node.inputs[0])
    place = strided_view(source, b.attributes(node))
    if place is None:
        shape = b.shapes[node.name]
        place = reshaped(source, shape) or reshaped(b.contiguous(node.inputs[0], node), shape)
    assert place is not None
    b.put(node.name, place)


def copy(b: Binder, node: Node, source: Place, target: Place) -> None:
    """Copy a value to a place of the same shape."""
    work: Work = mapped("copy", target.shape, target.strides, source.strides)
    b.add(node, work, source, NULL, NULL, target, how="copy")


def _in_place_or_new(b: Binder, node: Node, *operands: str) -> Place:
    """Where an elementwise result goes: over an operand that nobody reads afterwards, else to a place of its own."""
    if node.name not in b.homes and node.name not in b.places:
        for name in operands:
            place = b.places.get(name)
            if place is not None and place.lies(b.strides(node.name)) and b.dies(name, node):
                return b.put(node.name, place)
    return b.new(node.name)


def _ending(node: Node) -> dict[str, Any]:
    return {"activation": node.get("activation", ""), "slope": node.get("slope", 0.01)}


LOWER: dict[str, Callable[[Binder, Node], None]] = {
    "conv": conv,
    "linear": linear,
    "affine": affine,
    "activation": activation,
    "binary": binary,
    "pool": pool,
    "adaptive_pool": pool,
    "layer_norm": layer_norm,
    "softmax": softmax,
    "concat": concat,
    "slice": view,
    "reshape": view,
    "flatten": view,
    "permute": view,
}
