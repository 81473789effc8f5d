"""`.hubel` files: what is saved runs without the model's code; damaged and hostile files are one clear error."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save
from torch import Tensor, nn

from hubel.errors import ModelError
from hubel.ops.session import Session
from tests.ops.nets import ready

X = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 32, 40)).astype(np.float32))
_files: dict[str, bytes] = {}


def saved(name: str, folder: Path) -> Path:
    """A file of one of the small networks; captured once."""
    path = folder / f"{name}.hubel"
    if name not in _files:
        Session(ready(name), X[:1]).save(path)
        _files[name] = path.read_bytes()
    path.write_bytes(_files[name])
    return path


@pytest.mark.parametrize("name", ["residual", "branches", "tokens"])
def test_a_loaded_session_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    run = Session(ready(name), X[:1])
    run.save(tmp_path / "net.hubel")
    loaded = Session.load(tmp_path / "net.hubel")
    assert str(loaded.graph) == str(run.graph)
    for x in (X, X[:1]):
        found, wanted = loaded(x), run(x)
        if not isinstance(wanted, dict):
            found, wanted = {"y": found}, {"y": wanted}
        assert list(found) == list(wanted) and all(torch.equal(found[key], wanted[key]) for key in wanted)
    with pytest.raises(ModelError, match="a Session that was loaded"):
        loaded.refresh()


def test_it_runs_where_the_models_code_is_absent(tmp_path: Path) -> None:
    path = saved("residual", tmp_path)
    wanted = Session.load(path)(X).numpy()
    np.save(tmp_path / "x.npy", X.numpy())
    code = (
        "import sys, numpy, hubel\n"
        f"y = hubel.Session.load({str(path)!r})(numpy.load({str(tmp_path / 'x.npy')!r}))\n"
        "assert 'tests' not in sys.modules and 'torch._dynamo' not in sys.modules\n"
        f"numpy.save({str(tmp_path / 'y.npy')!r}, y)"
    )
    source = str(Path(sys.modules["hubel"].__file__ or "").parents[1])
    environment = {**os.environ, "PYTHONPATH": source}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path, timeout=120)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), wanted)


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.bernoulli(torch.sigmoid(self.conv(x)))


def test_operators_that_do_more_than_compute_are_not_saved(tmp_path: Path) -> None:
    run = Session(Random(), X)
    with pytest.raises(ModelError, match="functions of torch that only compute. Received: 'aten.bernoulli.default'"):
        run.save(tmp_path / "net.hubel")
    assert not list(tmp_path.iterdir())


def parts(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with safe_open(path, framework="np") as file:
        return json.loads(file.metadata()["hubel"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def node(document: dict[str, Any], op: str) -> dict[str, Any]:
    return next(n for n in document["nodes"] if n["op"] == op)


def foreign(document: dict[str, Any], target: str, *arguments: Any) -> None:
    attributes = {"target": target, "arguments": list(arguments), "keywords": {}}
    document["nodes"].append({"name": "evil", "op": "torch", "inputs": ["x"], "attributes": attributes})
    document["outputs"] = ["evil"]


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "another schema": lambda d: d.update(schema="hubel-graph/9"),
    "no nodes": lambda d: d.pop("nodes"),
    "an unknown operator": lambda d: node(d, "conv").update(op="system"),
    "an unknown attribute": lambda d: node(d, "conv")["attributes"].update(hook="os.system"),
    "a node that reads itself": lambda d: node(d, "conv").update(inputs=[node(d, "conv")["name"]] * 2),
    "a name twice": lambda d: d["nodes"].append(d["nodes"][0]),
    "an output that is not there": lambda d: d.update(outputs=["nothing"]),
    "an output of another number": lambda d: d.update(structure=[0, 7]),
    "a size that is text": lambda d: node(d, "conv")["attributes"].update(stride=["1", "1"]),
    "a size that is huge": lambda d: node(d, "conv")["attributes"].update(stride=[2**80, 1]),
    "a negative stride": lambda d: node(d, "conv")["attributes"].update(stride=[-1, -1]),
    "no stride": lambda d: node(d, "pool")["attributes"].update(stride=[0, 0]),
    "padding beyond memory": lambda d: node(d, "conv")["attributes"].update(padding=[2**31, 2**31]),
    "a dilation beyond the image": lambda d: node(d, "conv")["attributes"].update(dilation=[2**40, 2**40]),
    "a window beyond the image": lambda d: node(d, "pool")["attributes"].update(kernel=[2**40, 2**40]),
    "half of a huge window": lambda d: node(d, "pool")["attributes"].update(
        kernel=[2**40, 2**40], padding=[2**39, 2**39]
    ),
    "groups that do not divide": lambda d: node(d, "conv")["attributes"].update(groups=7),
    "weights of another layer": lambda d: node(d, "conv")["inputs"].__setitem__(1, node(d, "linear")["inputs"][1]),
    "a bias of another size": lambda d: node(d, "conv")["inputs"].__setitem__(2, node(d, "linear")["inputs"][2]),
    "a residual of another shape": lambda d: node(d, "conv").update(inputs=[*node(d, "conv")["inputs"][:3], "x"]),
    "an input that is everything": lambda d: d.update(inputs={"x": {"shape": [None] * 99, "dtype": "float32"}}),
    "an input of objects": lambda d: d["inputs"]["x"].update(dtype="object"),
    "a reference to nothing": lambda d: node(d, "flatten")["attributes"].update(start={"ref": "nobody"}),
    "a reference to a tensor": lambda d: node(d, "flatten")["attributes"].update(start={"ref": "x"}),
    "a function that writes files": lambda d: foreign(d, "aten.to_file.default", "x"),
    "a function that reads files": lambda d: foreign(d, "aten.from_file.default", "/etc/passwd"),
    "a function that writes memory": lambda d: foreign(d, "aten.relu_.default", {"operand": 0}),
    "a function outside of torch's": lambda d: foreign(d, "os.system.default", "true"),
    "attributes of Python's": lambda d: foreign(d, "aten.relu.__class__", {"operand": 0}),
    "an operand that is not there": lambda d: foreign(d, "aten.relu.default", {"operand": 99}),
    "a word that is none": lambda d: foreign(d, "aten.relu.default", {"word": "cuda"}),
    "something nested without end": lambda d: d.update(structure=_nested(400)),
}


def _nested(depth: int) -> Any:
    part: Any = 0
    for _ in range(depth):
        part = [part]
    return part


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_hostile_is_one_error_and_runs_nothing(name: str, tmp_path: Path) -> None:
    path = saved("residual", tmp_path)
    document, weights = parts(path)
    HOSTILE[name](document)
    path.write_bytes(save(weights, {"hubel": json.dumps(document)}))
    harmless = name == "something nested without end"
    try:
        Session.load(path)(X)
    except ModelError as error:
        assert not harmless and len(str(error)) > 20
    else:
        assert harmless


def test_weights_without_a_graph_and_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "w.hubel").write_bytes(save({"w": np.ones(3, np.float32)}))
    with pytest.raises(ModelError, match="w.hubel cannot be run: it holds weights without a graph"):
        Session.load(tmp_path / "w.hubel")
    with pytest.raises(ModelError, match="which is not there. Check the path"):
        Session.load(tmp_path / "none.hubel")
    (tmp_path / "p.hubel").write_bytes(b"\x80\x04\x95cos\nsystem\n")
    with pytest.raises(ModelError, match="holds a network as Session.save writes it"):
        Session.load(tmp_path / "p.hubel")


def test_damaged_files_never_do_more_than_raise(tmp_path: Path) -> None:
    """Truncated anywhere, and bytes changed anywhere in the header: an error, or a network of the same sizes."""
    path = saved("residual", tmp_path)
    whole, draw = path.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for trial in range(150):
        damaged = bytearray(whole)
        if trial % 3 == 0:
            damaged = damaged[: draw.randrange(len(damaged))]
        else:
            for _ in range(draw.choice([1, 2, 8])):
                damaged[draw.randrange(header)] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            y = Session.load(path)(X)
        except ModelError:
            refused += 1
        else:
            assert isinstance(y, Tensor | tuple | list | dict)
    assert refused > 100
