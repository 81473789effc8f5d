"""ONNX files: every operator against onnxruntime, whole graphs, what is refused, and what the messages say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hubel.convert.models import resolve
from hubel.convert.onnx_file import read_onnx
from hubel.convert.onnx_operators import OPERATORS
from hubel.errors import ModelError
from tests.convert import onnx_cases as cases
from tests.convert.onnx_cases import CASES, Case, X, ints, onnx, w

# What a graph of several nodes tests: sizes, logic, and constants that are made.
ELSEWHERE = {"Constant", "ConstantOfShape", "Shape", "Size", "Range", "And", "Or", "Not"}


def read(path: Path, arrays: list[np.ndarray]) -> list[np.ndarray]:
    network = read_onnx(path).network
    with torch.no_grad():
        results = network(*map(torch.from_numpy, arrays))
    return [result.numpy() for result in (results if isinstance(results, tuple) else (results,))]


def agree(path: Path, arrays: list[np.ndarray]) -> None:
    ours, theirs = read(path, arrays), cases.run(path, arrays)
    assert [a.shape for a in ours] == [a.shape for a in theirs]
    assert [a.dtype for a in ours] == [a.dtype for a in theirs]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_operator_does_what_onnxruntime_does(case: Case, tmp_path: Path) -> None:
    agree(*cases.model(case, tmp_path / "case.onnx"))


def test_every_operator_of_the_mapping_has_a_case() -> None:
    assert {case.kind for case in CASES} | ELSEWHERE == set(OPERATORS)


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return onnx.helper.make_node(kind, inputs.split(), outputs.split(), f"{kind}-{outputs}", **attributes)


def constant(name: str, array: np.ndarray) -> Any:
    return onnx.helper.make_node("Constant", [], [name], f"c-{name}", value=onnx.numpy_helper.from_array(array))


def image(*sizes: int | str, name: str = "x") -> Any:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes)


def shapes_graph(path: Path) -> Path:
    """Reshapes and enlarges by sizes that are computed, as exporters write it."""
    nodes = [
        node("Shape", "x", "s"),
        constant("zero", np.array(0, INT := np.int64)),
        constant("two", ints(2)),
        constant("four", ints(4)),
        constant("minus", ints(-1)),
        node("Gather", "s zero", "n", axis=0),
        node("Unsqueeze", "n first", "n1"),
        constant("first", ints(0)),
        node("Slice", "s two four", "hw"),
        node("Mul", "hw two", "hw2"),
        node("Concat", "n1 minus", "flat", axis=0),
        node("Reshape", "x flat", "rows"),
        node("Slice", "s first two", "nc"),
        node("Concat", "nc hw2", "large", axis=0),
        node("Resize", "x   large".replace("   ", " none none "), "up", mode="linear"),
        node("ConstantOfShape", "nc", "ones", value=onnx.helper.make_tensor("v", 1, [1], [1.0])),
        node("Size", "x", "count"),
        node("Cast", "count", "countf", to=1),
        node("ReduceMean", "up", "mean", axes=[2, 3], keepdims=0),
        node("Add", "mean ones", "plus"),
        node("Div", "plus countf", "y"),
    ]
    order = [nodes[i] for i in (0, 1, 2, 3, 4, 7, 5, 6, *range(8, len(nodes)))]
    for one in order:
        for place, name in enumerate(one.input):
            if name == "none":
                one.input[place] = ""
    assert INT is np.int64
    return cases.write(order, [image("N", 3, "H", "W")], ["y", "rows"], path)


def test_sizes_are_computed_from_the_input(tmp_path: Path) -> None:
    path = shapes_graph(tmp_path / "g.onnx")
    for shape in ((2, 3, 5, 7), (1, 3, 8, 4)):
        agree(path, [w(*shape)])


def test_computed_sizes_are_sizes_for_torch_compile(tmp_path: Path) -> None:
    """One graph for every size: nothing is read back from a tensor."""
    network = read_onnx(shapes_graph(tmp_path / "g.onnx")).network
    x = torch.from_numpy(w(2, 3, 5, 7))
    sizes = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    exported = torch.export.export(network, (x,), dynamic_shapes=(sizes,)).module()
    for shape in ((2, 3, 5, 7), (3, 3, 8, 4)):
        y = torch.from_numpy(w(*shape))
        torch.testing.assert_close(exported(y), network(y))


def test_logic_and_ranges(tmp_path: Path) -> None:
    nodes = [
        constant("zero", np.array(0.0, np.float32)),
        constant("half", np.array(0.5, np.float32)),
        node("Greater", "x zero", "a"),
        node("Less", "x half", "b"),
        node("And", "a b", "both"),
        node("Not", "both", "outside"),
        node("Or", "outside a", "any"),
        constant("from", np.array(1, np.int64)),
        constant("to", np.array(7, np.int64)),
        constant("by", np.array(2, np.int64)),
        node("Range", "from to by", "odd"),
        node("Cast", "odd", "oddf", to=1),
        node("Where", "any x oddf", "y"),
    ]
    agree(cases.write(nodes, [image(4, 3)], ["y"], tmp_path / "g.onnx"), [w(4, 3)])


def residual(path: Path) -> Path:
    """A strided convolution whose weights have torch's names, a norm, one layer that is used twice, and a sum."""
    weights = {
        "body.0.weight": w(4, 3, 3, 3), "body.0.bias": w(4), "body.1.weight": w(4, low=0.5), "body.1.bias": w(4),
        "body.1.running_mean": w(4), "body.1.running_var": w(4, low=0.5), "twice.weight": w(4, 4, 1, 1),
        "onnx::MatMul_7": w(4, 5), "1/strange name": w(5),
    }  # fmt: skip
    nodes = [
        node("Conv", "x body.0.weight body.0.bias", "a", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("BatchNormalization", "a body.1.weight body.1.bias body.1.running_mean body.1.running_var", "b"),
        node("Relu", "b", "c"),
        node("Conv", "c twice.weight", "d"),
        node("Conv", "d twice.weight", "e"),
        node("Add", "e c", "f"),
        node("GlobalAveragePool", "f", "g"),
        node("Flatten", "g", "h"),
        node("MatMul", "h onnx::MatMul_7", "i"),
        onnx.helper.make_node("Add", ["i", "1/strange name"], ["y"], "sum"),
    ]
    protos = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
    return cases.write(nodes, [image("N", 3, 9, 8)], ["y"], path, protos)


def test_layers_are_layers_at_the_addresses_of_their_weights(tmp_path: Path) -> None:
    path = residual(tmp_path / "net.onnx")
    agree(path, [w(2, 3, 9, 8)])
    found = read_onnx(path)
    layers = {
        name: type(module).__name__
        for name, module in found.network.named_modules()
        if not any(module.children()) and name
    }
    assert layers == {"body.0": "Conv2d", "body.1": "BatchNorm2d", "twice": "Conv2d", "onnx__MatMul_7": "Linear"}
    assert found.network.get_submodule("body.0").stride == (2, 2)
    assert (found.input_shape, found.batch, found.network.training) == ((3, 9, 8), None, False)
    assert sum(p.numel() for p in found.network.parameters()) == 4 * 27 + 4 + 8 + 16 + 20 + 5


def test_an_onnx_file_is_a_model_everywhere(tmp_path: Path) -> None:
    loaded = resolve(str(residual(tmp_path / "net.onnx")), networks={})
    assert (loaded.name, loaded.weights, loaded.arch, loaded.input_shape) == ("net.onnx", "file", None, (3, 9, 8))
    assert len(loaded.sha256 or "") == 64
    assert isinstance(loaded.network.get_submodule("twice"), nn.Conv2d)


def test_it_trains_and_is_copied(tmp_path: Path) -> None:
    import copy

    network = copy.deepcopy(read_onnx(residual(tmp_path / "net.onnx")).network)
    network(torch.randn(2, 3, 9, 8)).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_a_fixed_batch_size_is_fixed_only_if_the_graph_says_so(tmp_path: Path) -> None:
    free = cases.write([node("Relu", "x", "y")], [image(2, 3, 4, 4)], ["y"], tmp_path / "free.onnx")
    assert read_onnx(free).batch is None
    nodes = [constant("to", ints(2, 48)), node("Reshape", "x to", "y")]
    held = cases.write(nodes, [image(2, 3, 4, 4)], ["y"], tmp_path / "held.onnx")
    assert read_onnx(held).batch == 2


def test_an_operator_outside_the_mapping_is_named_and_nothing_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [node("Relu", "x", "a"), node("LpPool", "a", "b", kernel_shape=[2, 2]), node("Det", "b", "y")]
    path = cases.write(nodes, [image(1, 3, 4, 4)], ["y"], tmp_path / "net.onnx")

    def never(*_: Any) -> None:
        raise AssertionError("something was built")

    monkeypatch.setitem(OPERATORS, "Relu", never)
    with pytest.raises(ModelError) as caught:
        read_onnx(path)
    assert (
        f'Received: {path}, with LpPool (node "LpPool-b", 1 in all; also Det (1)). Give the network as .pt2, or run '
        "this file in onnxruntime."
    ) in str(caught.value)


def test_operators_of_other_domains_are_named_with_them(tmp_path: Path) -> None:
    made = onnx.helper.make_node("FusedConv", ["x"], ["y"], "fused", domain="com.microsoft")
    graph = onnx.helper.make_graph([made], "g", [image(1, 3, 4, 4)], [image(1, 3, 4, 4, name="y")])
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "net.onnx")
    with pytest.raises(ModelError, match=r'com\.microsoft\.FusedConv \(node "fused", 1 in all\)'):
        read_onnx(tmp_path / "net.onnx")


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Case("Slice", (X, ints(5), ints(0), ints(2), ints(-1))), r'Slice \(node "the-node"\), with negative steps'),
        (Case("Resize", (X, None, np.array([1, 2, 2, 2], np.float32)), {"mode": "nearest"}), "keep their size"),
        (Case("Conv", (X, (6, 4, 3, 3))), "whose weights are computed from the input"),
        (Case("Expand", (np.ones((1, 1), np.float32), ints(2**20, 2**20))), "which makes a constant of 1,099,511"),
        (Case("Softmax", (X,), {"axis": 1}, 6), "from opset 7 on"),
    ],
)
def test_forms_outside_the_mapping_say_operator_node_and_form(case: Case, message: str, tmp_path: Path) -> None:
    path, _ = cases.model(case, tmp_path / "case.onnx")
    with pytest.raises(ModelError, match=message):
        read_onnx(path)


def test_damaged_files_are_one_clear_message(tmp_path: Path) -> None:
    whole = residual(tmp_path / "net.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "noise.onnx").write_bytes(bytes(range(256)))
    for name in ("cut", "empty", "noise"):
        with pytest.raises(ModelError, match=f"must hold a whole ONNX model. Received: .*{name}.onnx"):
            read_onnx(tmp_path / f"{name}.onnx")
    with pytest.raises(ModelError, match="No such file"):
        read_onnx(tmp_path / "none.onnx")


def test_tampered_sizes_are_refused(tmp_path: Path) -> None:
    """Weights that say to be larger than the file, and a graph that is a ring."""
    large = onnx.load(residual(tmp_path / "net.onnx"))
    large.graph.initializer[0].dims[0] = 2**40
    onnx.save(large, tmp_path / "large.onnx")
    ring = onnx.load(tmp_path / "net.onnx")
    ring.graph.node[0].input[0] = "y"
    onnx.save(ring, tmp_path / "ring.onnx")
    for name, place in (("bias", 1), ("scale", 2)):
        mixed = onnx.load(tmp_path / "net.onnx")
        shorter = mixed.graph.initializer[place]
        shorter.dims[0], shorter.raw_data = 3, shorter.raw_data[:12]
        onnx.save(mixed, tmp_path / f"{name}.onnx")
    for name in ("large", "ring", "bias", "scale"):
        with pytest.raises(ModelError, match=f"{name}.onnx"):
            read_onnx(tmp_path / f"{name}.onnx")


def test_weights_outside_the_files_folder_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(4 * 27 * 4))
    (tmp_path / "inner").mkdir()
    model = onnx.load(residual(tmp_path / "net.onnx"))
    first = model.graph.initializer[0]
    first.ClearField("raw_data")
    first.data_location = onnx.TensorProto.EXTERNAL
    entry = first.external_data.add()
    for location in ("../secret", str(tmp_path / "secret")):
        entry.key, entry.value = "location", location
        (tmp_path / "inner" / "net.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(ModelError, match="must hold a whole ONNX model"):
            read_onnx(tmp_path / "inner" / "net.onnx")


def test_names_in_a_file_are_no_code(tmp_path: Path) -> None:
    """torch.fx writes Python from a graph: what a file calls things must not become a part of it."""
    target = tmp_path / "made-by-the-file"
    evil = f"a'); open({str(target)!r}, 'w'); ('"
    made = onnx.helper.make_node("Conv", [evil, f"{evil}.weight"], [f"{evil}y"], f"{evil}node")
    weight = onnx.numpy_helper.from_array(w(2, 3, 1, 1), f"{evil}.weight")
    word = onnx.helper.make_node("Add", [f"{evil}y", "class"], ["y"], "import os")
    bias = onnx.numpy_helper.from_array(w(2, 1, 1), "class")
    path = cases.write([made, word], [image(1, 3, 4, 4, name=evil)], ["y"], tmp_path / "net.onnx", [weight, bias])
    agree(path, [w(1, 3, 4, 4)])
    assert not target.exists()


def test_names_that_a_module_has_itself_are_no_trouble(tmp_path: Path) -> None:
    kernels = {
        f"{name}.weight": w(3, 3, 1, 1, seed=n) for n, name in enumerate(("graph", "forward", "code.0", "training"))
    }
    nodes = [node("Conv", f"{'x' if n == 0 else f'y{n - 1}'} {name}", f"y{n}") for n, name in enumerate(kernels)]
    nodes.append(node("Add", "y3 state_dict", "y"))
    protos = [onnx.numpy_helper.from_array(value, name) for name, value in kernels.items()]
    protos.append(onnx.numpy_helper.from_array(w(3, 1, 1), "state_dict"))
    path = cases.write(nodes, [image(1, 3, 4, 4)], ["y"], tmp_path / "net.onnx", protos)
    agree(path, [w(1, 3, 4, 4)])
    assert len(read_onnx(path).network.state_dict()) == 5


def test_without_the_package_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    path = residual(tmp_path / "net.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModelError, match=r"needs the package onnx.*pip install 'hubel\[onnx\]'"):
        read_onnx(path)
