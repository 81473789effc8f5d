"""What holds for every analysis in the table: five styles of network, records that can be kept, nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hubel import inspect
from hubel.inspect import ANALYSES
from hubel.records import Document, Record
from tests.inspect.nets import NETS, build, same_state, state_of

# Analyses that take something else than (net, images, labels), or need an option for so small a case.
NET_ONLY = {"kernels"}
UNLABELLED = {"feature_maps", "one_number"}
OPTIONS: dict[str, dict[str, Any]] = {"cost": {"rounds": 2}}


def call(name: str, net: nn.Module, x: torch.Tensor, y: torch.Tensor | None) -> Record:
    options = OPTIONS.get(name, {})
    if name in NET_ONLY:
        return ANALYSES[name](net, **options)
    if name in UNLABELLED:
        return ANALYSES[name](net, x[0] if name == "one_number" else x, **options)
    return ANALYSES[name](net, x, y, **options)


def document(record: Record) -> Document:
    return Document(
        model={
            "name": "net",
            "sha256": None,
            "weights": "random",
            "params": 1,
            "input": {"shape": [1, 3, 16, 16], "dtype": "float32"},
            "preprocess": None,
            "classes": None,
            "output": None,
        },
        data=None,
        settings={"profile": None, "seed": 0, "accuracy": "default", "threads": 1, "engine": "torch"},
        records=[record],
    )


# What a style of network cannot have: no convolution module, or no scores as its whole answer.
NOT_THERE = {("kernels", "functional"), ("one_number", "functional"), ("ablation", "reused")}


@pytest.mark.parametrize("net_name", NETS)
@pytest.mark.parametrize("name", ANALYSES)
def test_it_returns_a_record_that_can_be_kept_and_leaves_the_network_as_it_came(
    name: str, net_name: str, tmp_path: Path
) -> None:
    if (name, net_name) in NOT_THERE:
        pytest.skip("this style of network has nothing of the kind")
    net = build(net_name).train()
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8) % 3
    next(net.parameters()).grad = torch.ones_like(next(net.parameters()))
    before = state_of(net)
    assert getattr(inspect, name) is ANALYSES[name] and ANALYSES[name].__doc__
    record = call(name, net, x, y)
    assert same_state(before, state_of(net))
    assert isinstance(record, Record) and record.id == record.kind == name
    assert record.rows or record.reason, "what does not apply says why"
    kept = document(record)
    kept.save(tmp_path)
    again = Document.load(tmp_path)
    assert again.to_json() == kept.to_json()
    assert set(again.records[0].arrays) == set(record.arrays)


class Stops(nn.Module):
    """Runs `healthy` times, then raises: the probe goes through, the work does not."""

    def __init__(self, healthy: int) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.healthy = healthy

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.healthy -= 1
        x = self.bn(self.conv(x))
        if self.healthy < 0:
            raise OSError("the disk is gone")
        return self.head(torch.relu(x).mean((2, 3)))


@pytest.mark.parametrize("healthy", [0, 1, 2, 3])
@pytest.mark.parametrize("name", [name for name in ANALYSES if name not in NET_ONLY])
def test_an_exception_leaves_nothing_behind_either(name: str, healthy: int) -> None:
    net = Stops(healthy).train()
    x, y = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 3
    before = state_of(net)
    try:
        call(name, net, x, y)
    except OSError as error:
        assert str(error) == "the disk is gone"
    assert same_state(before, state_of(net))
