"""The network IR: printing, editing, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from hubel.errors import ModelError
from hubel.graph import Graph, Input, Node, Ref
from hubel.graph.network import Editor, pruned, refs, resolved
from hubel.graph.operators import check_attributes, shape_of, whole_number
from tests.graph.hand_made import CONV, POOL, RELU, graph, numbers


def test_a_graph_prints_as_a_list_of_nodes() -> None:
    small = graph(
        [
            Node("c", "conv", ("x", "w"), CONV | RELU),
            Node("s", "size", ("c",), {"dim": 0}),
            Node("r", "reshape", ("c",), {"shape": (Ref("s"), -1)}),
        ],
        ("r",),
        {"w": numbers(4, 3, 3, 3)},
    )
    assert str(small) == (
        "x: float32[?, 3, ?, ?]\n"
        "c = conv(x, w; stride=1, padding=1, dilation=1, groups=1, transposed=False, output_padding=0, "
        "activation=relu, slope=0.01)\n"
        "s = size(c; dim=0)\n"
        "r = reshape(c; shape=(%s, -1))\n"
        "return r"
    )


def test_numbers_stand_for_refs() -> None:
    value = {"a": (Ref("n"), 2), "b": [Ref("m")], "c": 1.5}
    assert [ref.name for ref in refs(value)] == ["n", "m"]
    assert resolved(value, {"n": 7, "m": 8}) == {"a": (7, 2), "b": [8], "c": 1.5}
    node = Node("t", "whole", (), {"kind": "floordiv", "of": (Ref("n"), 2)})
    assert whole_number(node, {}, {"n": 7}) == 3
    assert node.reads() == ["n"]


def test_what_no_output_needs_is_left_out() -> None:
    nodes = [
        Node("a", "activation", ("x",), RELU),
        Node("b", "activation", ("a",), RELU),
        Node("c", "activation", ("a",), RELU),
    ]
    small = pruned(graph(nodes, ("c",), {"w": numbers(3)}))
    assert [node.name for node in small.nodes] == ["a", "c"] and not small.constants


def test_an_editor_keeps_the_order_in_which_nodes_can_run() -> None:
    nodes = [
        Node("a", "activation", ("x",), RELU),
        Node("b", "activation", ("x",), RELU),
        Node("c", "activation", ("a",), RELU),
    ]
    edit = Editor(graph(nodes, ("c", "b"), {}))
    edit.put(Node("a", "binary", ("x", "b"), {"kind": "add"}))
    assert [node.name for node in edit.done().nodes] == ["b", "a", "c"]
    edit.drop("c", "a")
    assert edit.done().outputs == ("a", "b")


def test_constants_get_names_of_their_own() -> None:
    edit = Editor(graph([Node("a", "activation", ("x",), RELU)], ("a",), {"w": numbers(3)}))
    assert [edit.constant(name, numbers(1)) for name in ("w", "a", "x", "new", "w")] == [
        "w.1",
        "a.1",
        "x.1",
        "new",
        "w.2",
    ]


@pytest.mark.parametrize(
    "nodes, outputs, message",
    [
        (
            [Node("b", "activation", ("a",), RELU), Node("a", "activation", ("x",), RELU)],
            ("b",),
            "made before it.*reads a",
        ),
        ([Node("x", "activation", ("x",), RELU)], ("x",), "names of their own. Received: 'x' twice"),
        ([], ("y",), "an output is a value of the network. Received: 'y'"),
    ],
)
def test_what_cannot_run_is_refused(nodes: list[Node], outputs: tuple[str, ...], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        graph(nodes, outputs, {}).check()


@pytest.mark.parametrize(
    "node, message",
    [
        (Node("n", "conv3", ("x",), {}), "a node is one of conv, .*Received: 'conv3'"),
        (Node("n", "activation", (), RELU), "takes 1 to 1 operands. Received: 0"),
        (Node("n", "activation", ("x",), RELU | {"command": "rm"}), "activation takes .*Received: command='rm'"),
        (Node("n", "activation", ("x",), {"activation": "exec", "slope": 0.0}), "Received: activation='exec'"),
        (Node("n", "pool", ("x",), {k: v for k, v in POOL.items() if k != "kernel"}), "pool needs kernel"),
        (Node("n", "conv", ("x", "w"), CONV | {"groups": 1.5}), "Received: groups=1.5"),
        (Node("n", "conv", ("x", "w"), CONV | {"stride": (2**70, 1)}), "Received: stride="),
        (Node("n", "reshape", ("x",), {"shape": "1, 2"}), "Received: shape='1, 2'"),
    ],
)
def test_attributes_are_those_of_the_table(node: Node, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_attributes(node)


@pytest.mark.parametrize(
    "node, shapes, message",
    [
        (Node("n", "conv", ("x", "w"), CONV), [(1, 4, 8, 8), (8, 3, 3, 3)], "as many channels as its weight"),
        (
            Node("n", "conv", ("x", "w"), CONV | {"padding": (0, 0)}),
            [(1, 3, 2, 2), (8, 3, 3, 3)],
            "n: the kernel must fit",
        ),
        (Node("n", "linear", ("x", "w"), {}), [(1, 4), (8, 3)], "as many features"),
        (Node("n", "concat", ("a", "b"), {"dim": 1}), [(1, 4, 2), (1, 4, 3)], "differ along its axis only"),
        (Node("n", "concat", ("a", "b"), {"dim": 5}), [(1, 4, 2), (1, 4, 2)], "an axis that there is"),
        (Node("n", "reshape", ("a",), {"shape": (3, -1)}), [(1, 4, 2)], "keeps the number of numbers"),
        (Node("n", "reshape", ("a",), {"shape": (-2, -4)}), [(1, 4, 2)], "keeps the number of numbers"),
        (Node("n", "permute", ("a",), {"dims": (0, 0, 1)}), [(1, 4, 2)], "all axes in another order"),
        (Node("n", "binary", ("a", "b"), {"kind": "add"}), [(1, 4, 2), (3, 2)], "shapes that broadcast"),
        (Node("n", "pool", ("a",), POOL | {"padding": (2, 2)}), [(1, 4, 9, 9)], "pads by half a window"),
        (Node("n", "pool", ("a",), POOL | {"kernel": (9, 9)}), [(1, 4, 2, 2)], "windows that fit"),
        (Node("n", "affine", ("a", "s", "t"), {}), [(1, 4, 2, 2), (4,), (3,)], "one a channel"),
        (Node("n", "binary", ("a", "b"), {"kind": "add"}), [(2**21, 1), (1, 2**21)], "at most 1e.12 numbers"),
    ],
)
def test_shapes_that_do_not_fit_are_named(node: Node, shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        shape_of(node, shapes, {})


def test_a_constant_may_not_be_named_as_an_input() -> None:
    with pytest.raises(ModelError, match="a constant named as an input"):
        Graph({"x": Input((1,))}, {"x": np.ones(1, np.float32)}, (), ("x",)).check()


def test_a_ref_names_a_whole_number() -> None:
    nodes = [Node("a", "activation", ("x",), RELU), Node("r", "reshape", ("x",), {"shape": (Ref("a"), -1)})]
    with pytest.raises(ModelError, match="a Ref names a whole number that was computed before. Received: r = reshape"):
        graph(nodes, ("r",), {}).check()
