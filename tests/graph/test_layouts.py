"""Layouts of a network's images: what they are chosen by, and that results do not depend on them."""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import pytest

from hubel.graph import Graph, Network, Node
from hubel.graph import binder as binders
from hubel.graph.layouts import Costs, Layouts
from tests.graph.hand_made import CONV, POOL, close, defined, graph, numbers
from tests.graph.test_runtime import GRAPHS, X, made

ROWS, IMAGES = {"dims": (0, 2, 3, 1)}, {"dims": (0, 3, 1, 2)}


def forced(monkeypatch: pytest.MonkeyPatch, network: Network, shape: tuple[int, ...], which: int) -> Layouts:
    """The network bound with the `which`-th choice of maps that have their channels side by side."""
    chosen: list[Layouts] = []

    def layouts_of(b: binders.Binder) -> Layouts:
        costs = Costs(b)
        free = sorted({pixels for pixels in costs.pixels.values() if pixels > 0})
        subsets = [*chain.from_iterable(combinations(free, n) for n in range(len(free) + 1))]
        chosen.append(costs.layouts(frozenset(subsets[which % len(subsets)])))
        return chosen[-1]

    monkeypatch.setattr(binders, "layouts_of", layouts_of)
    network.program([shape], 1)
    return chosen[-1]


@pytest.mark.parametrize("which", range(8))
@pytest.mark.parametrize("name", GRAPHS)
def test_results_do_not_depend_on_layouts(name: str, which: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(made(name))
    forced(monkeypatch, network, X.shape, which)
    for found, wanted in zip(network.run_numpy(X), defined(made(name), X), strict=True):
        close(found, wanted)


def blocks() -> Graph:
    """As in a MobileNet: narrow to wide, every channel by itself, wide to narrow, added to what came in."""
    constants = {
        "s": numbers(16, 3, 3, 3),
        "e": numbers(96, 16, 1, 1),
        "d": numbers(96, 1, 3, 3),
        "p": numbers(16, 96, 1, 1),
    }
    nodes = [Node("x0", "conv", ("x", "s"), CONV | {"padding": (1, 1)})]
    for i in range(3):
        nodes += [
            Node(f"e{i}", "conv", (f"x{i}", "e"), CONV | {"padding": (0, 0)}),
            Node(f"d{i}", "conv", (f"e{i}", "d"), CONV | {"padding": (1, 1), "groups": 96}),
            Node(f"p{i}", "conv", (f"d{i}", "p"), CONV | {"padding": (0, 0)}),
            Node(f"x{i + 1}", "binary", (f"x{i}", f"p{i}"), {"kind": "add", "same": True}),
        ]
    return graph([*nodes, Node("y", "adaptive_pool", ("x3",), {"size": (1, 1)})], ("y",), constants)


def test_depthwise_blocks_have_their_channels_side_by_side() -> None:
    network = Network(blocks())
    for images in (1, 16):
        x = numbers(images, 3, 14, 14)
        program = network.program([x.shape], 1)
        assert all(program.places[name].channels_last for name in ("e1", "d1", "p1"))
        assert "copy" not in [entry.how for entry in program.entries]
        close(network.run_numpy(x)[0], defined(blocks(), x)[0])


def test_layouts_and_bits_depend_on_neither_batch_nor_threads() -> None:
    network, x = Network(blocks()), numbers(5, 3, 14, 14)
    places = [
        network.program([(batch, *x.shape[1:])], threads).places["d1"].channels_last
        for batch in (1, 5)
        for threads in (1, 2)
    ]
    assert len(set(places)) == 1
    together = network.run_numpy(x, threads=2)[0]
    np.testing.assert_array_equal(together[3:4], network.run_numpy(x[3:4], threads=1)[0])


def test_rows_of_features_are_images_with_channels_side_by_side() -> None:
    """As in ConvNeXt: nothing is turned between convolutions and linear layers."""
    nodes = [
        Node("c", "conv", ("x", "w"), CONV | {"padding": (1, 1)}),
        Node("r", "permute", ("c",), ROWS),
        Node("n", "layer_norm", ("r", "g"), {"eps": 1e-6}),
        Node("l", "linear", ("n", "m")),
        Node("i", "permute", ("l",), IMAGES),
        Node("s", "binary", ("c", "i"), {"kind": "add", "same": True}),
        Node("p", "pool", ("s",), POOL),
        Node("y", "adaptive_pool", ("p",), {"size": (1, 1)}),
    ]
    constants = {"w": numbers(32, 3, 3, 3), "g": numbers(32), "m": numbers(32, 32)}
    network, x = Network(graph(nodes, ("y",), constants)), numbers(2, 3, 12, 12)
    program = network.program([x.shape], 1)
    assert [entry.how for entry in program.entries if entry.how == "copy"] == []
    close(network.run_numpy(x)[0], defined(graph(nodes, ("y",), constants), x)[0])
