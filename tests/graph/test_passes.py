"""Each pass: what it leaves, that it computes the same, and where it must keep its hands off."""

from __future__ import annotations

import numpy as np
import pytest

from hubel.graph import PASSES, Graph, Network, Node, optimised
from hubel.graph.passes import drop_identities, fold_batch_norm, fold_factor, fuse_activation, fuse_residual
from tests.graph.hand_made import CONV, POOL, RELU, close, defined, graph, norm, numbers

ADD = {"kind": "add", "same": True}
BN = {"eps": 1e-5}
X = numbers(2, 3, 9, 8)
NORM = ("n.gamma", "n.beta", "n.mean", "n.var")


def ops(small: Graph) -> list[str]:
    return [node.op for node in small.nodes]


def same(before: Graph, after: Graph) -> None:
    for found, wanted in zip(defined(after, X), defined(before, X), strict=True):
        close(found, wanted, 1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_batch_norms_go_into_the_weights(bias: bool) -> None:
    constants = {"w": numbers(4, 3, 3, 3), "b": numbers(4)} | norm(4)
    before = graph(
        [Node("c", "conv", ("x", "w", "b")[: 2 + bias], CONV), Node("n", "batch_norm", ("c", *NORM), BN)],
        ("n",),
        constants,
    )
    after = fold_batch_norm(before)
    assert ops(after) == ["conv"] and after.outputs == ("c",)
    same(before, after)


def test_batch_norms_go_into_transposed_weights() -> None:
    constants = {"w": numbers(3, 4, 3, 3)} | norm(4)
    before = graph(
        [
            Node("c", "conv", ("x", "w"), CONV | {"transposed": True, "stride": (2, 2)}),
            Node("n", "batch_norm", ("c", *NORM), BN),
        ],
        ("n",),
        constants,
    )
    after = fold_batch_norm(before)
    assert ops(after) == ["conv"]
    same(before, after)
    grouped = graph(
        [
            Node("c", "conv", ("x", "w"), CONV | {"transposed": True, "groups": 3}),
            Node("n", "batch_norm", ("c", *NORM), BN),
        ],
        ("n",),
        {"w": numbers(3, 2, 3, 3)} | norm(6),
    )
    same(grouped, fold_batch_norm(grouped))


def test_batch_norms_go_into_linear_layers() -> None:
    constants = {"w": numbers(4, 8)} | norm(4)
    before = graph(
        [Node("c", "linear", ("x", "w"), {}), Node("n", "batch_norm", ("c", *NORM), BN)], ("n",), constants, 8
    )
    after = fold_batch_norm(before)
    assert ops(after) == ["linear"]
    x = numbers(5, 8)
    close(defined(after, x)[0], defined(before, x)[0])


@pytest.mark.parametrize("why", ["read twice", "an output", "no convolution", "ended", "almost no variance"])
def test_other_batch_norms_scale_and_shift(why: str) -> None:
    conv = CONV | (RELU if why == "ended" else {})
    constants = {"w": numbers(3, 3, 3, 3)} | norm(3)
    if why == "almost no variance":
        constants["n.var"] = np.array([1, 1e-12, 1], np.float32)
    nodes = [Node("c", "conv", ("x", "w"), conv), Node("n", "batch_norm", ("c", *NORM), {"eps": 1e-12})]
    outputs = ("n", "c") if why == "an output" else ("n",)
    if why == "read twice":
        nodes.append(Node("s", "binary", ("n", "c"), ADD))
        outputs = ("s",)
    if why == "no convolution":
        nodes[0] = Node("c", "activation", ("x",), RELU)
    before = graph(nodes, outputs, constants)
    after = fold_batch_norm(before)
    assert "affine" in ops(after) and "batch_norm" not in ops(after)
    same(before, after)


MUL = {"kind": "mul"}
ROWS, IMAGES = {"dims": (0, 2, 3, 1)}, {"dims": (0, 3, 1, 2)}


@pytest.mark.parametrize("shape", [(5, 1, 1), (1, 5, 1, 1), (1,), ()])
def test_factors_go_into_the_weights(shape: tuple[int, ...]) -> None:
    constants = {"w": numbers(5, 3, 3, 3), "b": numbers(5), "f": numbers(*shape)}
    nodes = [Node("c", "conv", ("x", "w", "b"), CONV), Node("m", "binary", ("f", "c"), MUL)]
    before = graph(nodes, ("m",), constants)
    after = fold_factor(before)
    # A number without axes is left where it is: nothing says that it is a constant of one channel.
    assert ops(after) == (["conv"] if shape in ((5, 1, 1), (1, 5, 1, 1)) else ["conv", "binary"])
    same(before, after)


def test_factors_go_into_transposed_weights() -> None:
    transposed = Node("c", "conv", ("x", "w"), CONV | {"transposed": True, "groups": 3})
    before = graph(
        [transposed, Node("m", "binary", ("c", "f"), MUL)],
        ("m",),
        {"w": numbers(3, 2, 3, 3), "f": numbers(6, 1, 1)},
    )
    after = fold_factor(before)
    assert ops(after) == ["conv"]
    same(before, after)


@pytest.mark.parametrize(
    ("factor", "stays"), [((4, 1, 1), False), ((1, 1, 8), True), ((9, 1), True), ((1, 4, 1, 1), False)]
)
def test_factors_of_rows_seen_as_images_go_into_them(factor: tuple[int, ...], stays: bool) -> None:
    nodes = [
        Node("r", "permute", ("x",), ROWS),
        Node("l", "linear", ("r", "w")),
        Node("i", "permute", ("l",), IMAGES),
        Node("m", "binary", ("i", "f"), MUL),
    ]
    before = graph(nodes, ("m",), {"w": numbers(4, 3), "f": numbers(*factor)})
    after = fold_factor(before)
    assert ("binary" in ops(after)) == stays
    same(before, after)


@pytest.mark.parametrize("why", ["read twice", "an activation", "an output", "no constant"])
def test_factors_that_cannot_go_into_weights_stay(why: str) -> None:
    layer = Node("c", "conv", ("x", "w"), CONV | (RELU if why == "an activation" else {}))
    nodes = [layer, Node("m", "binary", ("c", "c" if why == "no constant" else "f"), MUL)]
    if why == "read twice":
        nodes.append(Node("s", "binary", ("c", "m"), ADD))
    outputs = (nodes[-1].name, "c") if why == "an output" else (nodes[-1].name,)
    before = graph(nodes, outputs, {"w": numbers(5, 3, 3, 3), "f": numbers(5, 1, 1)})
    assert ops(fold_factor(before)) == ops(before)


def test_sums_of_rows_seen_as_images_become_the_end_of_the_rows() -> None:
    nodes = [
        Node("r", "permute", ("x",), ROWS),
        Node("l", "linear", ("r", "w")),
        Node("i", "permute", ("l",), IMAGES),
        Node("s", "binary", ("x", "i"), ADD | RELU),
    ]
    before = graph(nodes, ("s",), {"w": numbers(3, 3)})
    after = fuse_residual(before)
    assert ops(after) == ["permute", "permute", "linear", "permute"] and after.node("l")["activation"] == "relu"  # type: ignore[index]
    same(before, after)


def test_activations_become_the_end_of_what_they_alone_read() -> None:
    nodes = [
        Node("c", "conv", ("x", "w"), CONV),
        Node("r", "activation", ("c",), RELU),
        Node("t", "activation", ("r",), RELU | {"activation": "tanh"}),
    ]
    before = graph(nodes, ("t",), {"w": numbers(4, 3, 3, 3)})
    after = fuse_activation(before)
    # A second activation is a step of its own.
    assert ops(after) == ["conv", "activation"] and after.nodes[0]["activation"] == "relu"
    same(before, after)
    read_twice = graph([*nodes[:2], Node("s", "binary", ("r", "c"), ADD)], ("s",), before.constants)
    assert ops(fuse_activation(read_twice)) == ["conv", "activation", "binary"]


def block(activation: str = "relu") -> Graph:
    nodes = [
        Node("a", "conv", ("x", "w"), CONV),
        Node("b", "conv", ("x", "v"), CONV),
        Node("s", "binary", ("b", "a"), ADD | {"activation": activation, "slope": 0.1}),
    ]
    return graph(nodes, ("s",), {"w": numbers(4, 3, 3, 3, seed=1), "v": numbers(4, 3, 3, 3, seed=2)})


def test_sums_become_the_end_of_the_later_convolution() -> None:
    before = block()
    after = fuse_residual(before)
    assert ops(after) == ["conv", "conv"]
    assert after.nodes[1].inputs == ("x", "v", "", "a") and after.nodes[1]["activation"] == "relu"
    same(before, after)


def test_sums_that_cannot_be_an_end_stay() -> None:
    kept = [
        # of the same tensor, of a broadcast one, of a product, where the convolution is read elsewhere or has an end
        [Node("a", "conv", ("x", "w"), CONV), Node("s", "binary", ("a", "a"), ADD)],
        [Node("a", "conv", ("x", "w"), CONV), Node("s", "binary", ("a", "x"), {"kind": "add", "same": False})],
        [Node("a", "conv", ("x", "w"), CONV), Node("s", "binary", ("a", "x"), {"kind": "mul", "same": True})],
        [
            Node("a", "conv", ("x", "w"), CONV),
            Node("b", "activation", ("a",), RELU),
            Node("s", "binary", ("a", "b"), ADD),
        ],
        [Node("a", "conv", ("x", "w"), CONV | RELU), Node("s", "binary", ("a", "x"), ADD)],
    ]
    for nodes in kept:
        before = graph(nodes, ("s",), {"w": numbers(3, 3, 3, 3)})
        after = fuse_residual(before)
        assert ops(after) == ops(before)


def test_a_convolution_is_not_added_to_what_is_made_from_it() -> None:
    nodes = [
        Node("a", "conv", ("x", "w"), CONV),
        Node("p", "activation", ("a",), RELU),
        Node("q", "conv", ("p", "w"), CONV),
        Node("s", "binary", ("a", "q"), ADD),
    ]
    before = graph(nodes, ("s",), {"w": numbers(3, 3, 3, 3)})
    after = fuse_residual(before)
    assert ops(after) == ["conv", "activation", "conv"] and after.nodes[2].inputs[3] == "a"
    same(before, after)


def test_identities_go() -> None:
    nodes = [
        Node("p", "pool", ("x",), POOL | {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0)}),
        Node("t", "permute", ("p",), {"dims": (0, 1, 2, 3)}),
        Node("f", "flatten", ("t",), {"start": 1, "end": 1}),
        Node("k", "concat", ("f",), {"dim": 1}),
        Node("r", "activation", ("k",), RELU),
    ]
    before = graph(nodes, ("r",), {})
    after = drop_identities(before)
    assert ops(after) == ["activation"]
    same(before, after)


def test_all_passes_together_and_what_runs() -> None:
    constants = {"w": numbers(4, 3, 3, 3), "v": numbers(4, 4, 3, 3)} | norm(4)
    nodes = [
        Node("a", "conv", ("x", "w"), CONV),
        Node("r", "activation", ("a",), RELU),
        Node("b", "conv", ("r", "v"), CONV),
        Node("n", "batch_norm", ("b", *NORM), BN),
        Node("s", "binary", ("n", "r"), ADD),
        Node("t", "activation", ("s",), RELU),
    ]
    before = graph(nodes, ("t",), constants)
    after = optimised(before)
    assert ops(after) == ["conv", "conv"] and list(PASSES) == [
        "drop_identities",
        "fold_batch_norm",
        "fold_factor",
        "fuse_activation",
        "fuse_residual",
    ]
    same(before, after)
    close(Network(before).run_numpy(X)[0], defined(before, X)[0])
