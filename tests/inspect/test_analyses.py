"""What holds for every analysis in the table."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hubel import inspect
from hubel.inspect import ANALYSES
from hubel.records import Document, Record


@pytest.mark.parametrize("name", ANALYSES)
def test_it_is_a_function_of_its_name_that_returns_a_record_that_can_be_kept(name: str, tmp_path) -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net, x = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), head), torch.randn(1, 1, 8, 8)
    assert getattr(inspect, name) is ANALYSES[name]
    record = ANALYSES[name](net) if name == "kernels" else ANALYSES[name](net, x)
    assert isinstance(record, Record) and record.id == record.kind == name
    assert record.rows and ANALYSES[name].__doc__
    document = Document(
        model={
            "name": "net",
            "sha256": None,
            "weights": "random",
            "params": 1,
            "input": {"shape": [1, 1, 8, 8], "dtype": "float32"},
            "preprocess": None,
            "classes": None,
            "output": None,
        },
        data=None,
        settings={"profile": None, "seed": 0, "accuracy": "default", "threads": 1, "engine": "torch"},
        records=[record],
    )
    document.save(tmp_path)
    again = Document.load(tmp_path)
    assert again.to_json() == document.to_json()
    assert set(again.records[0].arrays) == set(record.arrays)
