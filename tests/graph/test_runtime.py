"""Graphs made by hand, run natively, against torch in float64: every operator, sizes, threads, places."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from hubel.engine.cache import cache_info
from hubel.errors import ModelError
from hubel.graph import Graph, Network, Node, Ref
from hubel.graph.binder import CALL
from tests.graph.hand_made import CONV, POOL, RELU, close, defined, graph, norm, numbers

ADD = {"kind": "add", "same": True}
SMALL = CONV | {"padding": (0, 0)}
X = numbers(2, 3, 9, 12)
W = {"w": numbers(4, 3, 3, 3), "v": numbers(4, 4, 3, 3), "bias": numbers(4), "wl": numbers(5, 4)}


def conv(name: str, x: str, w: str, **attributes: object) -> Node:
    return Node(name, "conv", (x, w), CONV | attributes)


# What is special about each is in its name; all are made of one or two convolutions and what is between them.
GRAPHS: dict[str, tuple[list[Node], tuple[str, ...]]] = {
    "activations": (
        [
            conv("c", "x", "w"),
            Node("a", "activation", ("x",), RELU | {"activation": "silu"}),
            Node("l", "activation", ("c",), {"activation": "leaky_relu", "slope": 0.3}),
        ],
        ("a", "l", "c"),
    ),
    "affine": (
        [
            Node("n", "batch_norm", ("x", "n.gamma", "n.beta", "n.mean", "n.var"), {"eps": 1e-5}),
            Node("r", "activation", ("n",), RELU),
            conv("c", "r", "w"),
        ],
        ("c",),
    ),
    "pooling": (
        [
            Node("p", "pool", ("x",), POOL),
            Node("q", "pool", ("p",), POOL | {"kind": "mean", "count_padding": False}),
            Node("r", "adaptive_pool", ("x",), {"size": (4, 1)}),
        ],
        ("q", "r"),
    ),
    "concatenation in place": (
        [
            conv("a", "x", "w"),
            conv("b", "a", "v", activation="relu", slope=0.01),
            Node("p", "pool", ("a",), POOL | {"stride": (1, 1)}),
            Node("k", "concat", ("b", "a", "p"), {"dim": 1}),
            Node("s", "slice", ("k",), {"dim": 1, "start": 2, "end": 6}),
            conv("c", "s", "v"),
        ],
        ("c",),
    ),
    "a dense block": (
        [
            conv("a", "x", "w"),
            Node("k", "concat", ("x", "a"), {"dim": 1}),
            Node("t", "slice", ("k",), {"dim": 1, "start": 0, "end": 4}),
            conv("b", "t", "v"),
            Node("j", "concat", ("x", "a", "b"), {"dim": 1}),
            Node("q", "slice", ("j",), {"dim": 1, "start": -4, "end": None}),
            conv("c", "q", "v"),
        ],
        ("c", "j"),
    ),
    "what is concatenated twice": (
        [
            conv("a", "x", "w"),
            Node("k", "concat", ("a", "x", "a"), {"dim": 1}),
            Node("j", "concat", ("x", "a"), {"dim": 1}),
        ],
        ("k", "j"),
    ),
    "along other axes": (
        [
            Node("k", "concat", ("x", "x"), {"dim": 3}),
            Node("j", "concat", ("k", "k"), {"dim": 0}),
            Node("s", "slice", ("j",), {"dim": 2, "start": 1, "end": -1}),
            conv("c", "s", "w"),
        ],
        ("c",),
    ),
    "residuals": (
        [
            conv("a", "x", "w"),
            conv("b", "a", "v"),
            Node("s", "binary", ("b", "a"), ADD),
            Node("r", "activation", ("s",), RELU),
            conv("d", "r", "v"),
            Node("t", "binary", ("d", "r"), ADD),
        ],
        ("t",),
    ),
    "a residual that lies elsewhere": (
        [
            conv("a", "x", "w"),
            conv("b", "a", "v"),
            Node("s", "binary", ("b", "a"), ADD),
            Node("k", "concat", ("s", "x"), {"dim": 1}),
        ],
        ("k",),
    ),
    "a residual that is the input": (
        [
            conv("a", "x", "w"),
            Node("q", "slice", ("a",), {"dim": 1, "start": 0, "end": 3}),
            Node("c", "conv", ("x", "z"), CONV),
            Node("s", "binary", ("c", "x"), ADD),
        ],
        ("s", "q"),
    ),
    "squeeze and excite": (
        [
            conv("a", "x", "w"),
            Node("m", "adaptive_pool", ("a",), {"size": (1, 1)}),
            Node("e", "conv", ("m", "we"), SMALL),
            Node("g", "activation", ("e",), {"activation": "sigmoid", "slope": 0.01}),
            Node("s", "binary", ("a", "g"), {"kind": "mul", "same": False}),
        ],
        ("s",),
    ),
    "shuffled channels": (
        [
            conv("a", "x", "w"),
            Node("h", "size", ("a",), {"dim": 2}),
            Node("i", "size", ("a",), {"dim": 3}),
            Node("n", "size", ("x",), {"dim": 0}),
            Node("r", "reshape", ("a",), {"shape": (Ref("n"), 2, 2, Ref("h"), Ref("i"))}),
            Node("p", "permute", ("r",), {"dims": (0, 2, 1, 3, 4)}),
            Node("o", "reshape", ("p",), {"shape": (Ref("n"), 4, Ref("h"), Ref("i"))}),
            conv("c", "o", "v"),
        ],
        ("c",),
    ),
    "linear": (
        [
            conv("a", "x", "w"),
            Node("m", "adaptive_pool", ("a",), {"size": (1, 1)}),
            Node("f", "flatten", ("m",), {"start": 1, "end": 3}),
            Node("l", "linear", ("f", "wl"), RELU),
        ],
        ("l",),
    ),
    "tokens": (
        [
            conv("a", "x", "w"),
            Node("f", "flatten", ("a",), {"start": 2, "end": 3}),
            Node("t", "permute", ("f",), {"dims": (0, 2, 1)}),
            Node("n", "layer_norm", ("t", "bias", "bias"), {"eps": 1e-6}),
            Node("l", "linear", ("n", "wg", "bias"), {"activation": "gelu", "slope": 0.01}),
            Node("s", "binary", ("l", "t"), ADD),
            Node("o", "softmax", ("s",), {}),
        ],
        ("o",),
    ),
    "transposed": (
        [
            conv("a", "x", "w"),
            Node(
                "u",
                "conv",
                ("a", "v", "bias"),
                CONV | {"transposed": True, "stride": (2, 2), "output_padding": (1, 1)} | RELU,
            ),
        ],
        ("u",),
    ),
    "outputs that are inputs and views": (
        [conv("a", "x", "w"), Node("s", "slice", ("a",), {"dim": 1, "start": 1, "end": 3})],
        ("x", "s", "a", "a"),
    ),
    "constants": (
        [Node("s", "binary", ("x", "one"), {"kind": "sub"}), Node("k", "concat", ("s", "plane"), {"dim": 0})],
        ("k",),
    ),
}
CONSTANTS = (
    W
    | norm(3)
    | {
        "z": numbers(3, 3, 3, 3, seed=9),
        "we": numbers(4, 4, 1, 1),
        "wg": numbers(4, 4, seed=5),
        "one": np.array(1.5, np.float32),
        "plane": numbers(1, 3, 9, 12, seed=6),
    }
)


def made(name: str) -> Graph:
    nodes, outputs = GRAPHS[name]
    return graph(nodes, outputs, CONSTANTS)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_is_what_its_nodes_say(name: str, threads: int) -> None:
    network = Network(made(name))
    # Twice: what the first run left behind must not matter.
    for x in (X, X[:1], X):
        program = network.program([x.shape], threads)
        for found, wanted in zip(run(program, x), defined(made(name), x), strict=True):
            close(found, wanted)


def run(program: object, x: np.ndarray) -> list[np.ndarray]:
    outputs = [np.full(place.shape, np.nan, np.float32) for place in program.outputs]  # type: ignore[attr-defined]
    program.run([x.ctypes.data, *(y.ctypes.data for y in outputs)], [x])  # type: ignore[attr-defined]
    return outputs


def test_every_operator_is_run_by_some_graph() -> None:
    from hubel.graph.lower import LOWER

    ran = {node.op for name in GRAPHS for node in Network(made(name)).graph.nodes}
    assert set(LOWER) <= ran


@pytest.mark.parametrize("name", ["concatenation in place", "a dense block"])
def test_concatenations_copy_nothing_but_what_others_made(name: str) -> None:
    program = Network(made(name)).program([X.shape], 1)
    copied = [entry.node.name for entry in program.entries if entry.how == "copy"]
    assert copied == ([] if name == "concatenation in place" else ["k"])


def test_a_whole_network_is_one_region_and_writes_its_outputs_at_once() -> None:
    program = Network(made("residuals")).program([X.shape], 2)
    assert len(program.steps) == 1 and [entry.node.op for entry in program.entries] == ["conv"] * 3
    assert program.entries[-1].pointers[3].buffer.base == CALL + 1


def test_the_arena_is_shared_by_what_does_not_live_at_once() -> None:
    nodes = [conv("c0", "x", "w"), *(conv(f"c{i}", f"c{i - 1}", "v") for i in range(1, 12))]
    program = Network(graph(nodes, ("c11",), CONSTANTS)).program([X.shape], 1)
    one = 4 * 2 * 4 * 9 * 12
    assert program.arena_bytes <= 2 * one + 256


def test_sizes_of_one_class_compile_nothing_new() -> None:
    """On some machines another algorithm is the cheaper one for some sizes; after those there is nothing to compile."""
    network = Network(made("residuals"))
    for size in (40, 44):
        for batch in (1, 2):
            network.run_numpy(numbers(batch, 3, size, size))
    before = cache_info()
    for size in (41, 42, 43, 45, 46, 47, 48):
        network.run_numpy(numbers(2, 3, size, size))
    assert cache_info().compiled == before.compiled and cache_info().loaded == before.loaded


def test_sizes_that_the_network_does_not_take_are_named() -> None:
    network = Network(made("residuals"))
    with pytest.raises(
        ModelError, match=r"any where it says \?. Received: \[1, 4, 9, 9\] for x: float32\[\?, 3, \?, \?\]"
    ):
        network.run_numpy(numbers(1, 4, 9, 9))
    with pytest.raises(ModelError, match="linear needs as many features"):
        Network(
            graph(
                [Node("f", "flatten", ("x",), {"start": 1, "end": 3}), Node("l", "linear", ("f", "wl"), {})],
                ("l",),
                CONSTANTS,
            )
        ).run_numpy(X)


def test_threads_run_one_network_at_once() -> None:
    network = Network(made("residuals"))
    xs = [numbers(1, 3, 16, 16, seed=i) for i in range(4)]
    wanted = [network.run_numpy(x)[0] for x in xs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(50):
            if not np.array_equal(network.run_numpy(xs[i])[0], wanted[i]):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_batch_has_the_bits_of_its_images() -> None:
    network = Network(made("residuals"))
    together = network.run_numpy(X, threads=2)[0]
    alone = [network.run_numpy(X[i : i + 1])[0] for i in range(2)]
    np.testing.assert_array_equal(together, np.concatenate(alone))
