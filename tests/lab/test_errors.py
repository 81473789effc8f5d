"""Errors against float64: measured rightly, and on a sample of layers within what plans and levels promise."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import jsonschema
import pytest
import torch

from hubel.engine.problem import Direction
from hubel.lab import bench_text, errors, shapes
from hubel.records import Document, json_schema

ROOT = Path(__file__).resolve().parents[2]
# A layer of each list, small enough for seconds in all.
SAMPLE = """n1c128o128i28x28k3x3s1p1  n1c512o128i28x28k1x1s1p0  n1c256o512i14x14k3x3s2p1  n1c3o32i64x64k7x7s2p3
    n1c48o64i35x35k5x5s1p2  n1c128o128i17x17k1x7s1p0x3  n1c256o256i14x14k3x3s1p1g32  n1c64o64i512k5s1p2
    n1c16o16i8x14x14k3x3x3s1p1  n1c64o64i28x28k31x31s1p15g64  n1c144o144i28x28k3x3s2p1g144
    n1c64o64i28x28k3x3s2p1/transposed  n16c64o64i28x28k3x3s1p1/weight_gradient""".split()


@pytest.mark.parametrize("text", SAMPLE)
def test_plans_and_levels_keep_their_promises(text):
    for layer in shapes.resolve([text]):
        for case in errors.directions(layer):
            for found in errors.errors(case):
                assert found.rms <= found.plan.error_bound, (case.target, found.level, found.plan.algorithm)
                assert found.rms <= errors.UNITS[found.level] * found.u, (case.target, found.level)
                assert found.rms > 0 and found.largest > found.rms


def test_a_layer_has_three_directions_and_a_direction_one():
    (layer,) = shapes.resolve(["c3o8i9x9k3/bias"])
    assert [case.problem.direction for case in errors.directions(layer)] == list(Direction)
    assert not any(case.problem.bias for case in errors.directions(layer))
    (gradient,) = shapes.resolve(["c3o8i9x9k3/weight_gradient"])
    assert list(errors.directions(gradient)) == [gradient]


def test_distances_are_those_of_the_page():
    reference = torch.tensor([3.0, -4.0], dtype=torch.float64)
    rms, largest = errors._distances(torch.tensor([3.0, -3.5]), reference)
    assert rms == pytest.approx(0.5 / 5)
    assert largest == pytest.approx(0.5 / math.sqrt(12.5))
    assert errors._distances(torch.tensor([3.0, math.nan]), reference) == (math.inf, math.inf)


def test_the_document_has_a_row_a_level_and_becomes_the_page(tmp_path, capsys):
    document = errors.run(["c3o8i9x9k3", "c4o8i9x9k3/transposed"], threads=1)
    record = document.record("errors")
    assert len(record.rows) == 3 * 3 + 3
    assert all(row["kept"] == 1 for row in record.rows)
    jsonschema.validate(json.loads(document.to_json()), json_schema())
    assert "weight gradient" in bench_text.render_text(document)
    path = tmp_path / "run.json"
    path.write_text(document.to_json())
    assert Document.from_json(path.read_text()).record("errors").rows == record.rows

    spec = importlib.util.spec_from_file_location("numerics", ROOT / "benchmarks" / "numerics.py")
    assert spec and spec.loader
    numerics = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(numerics)
    numerics.main([str(path)])
    page = capsys.readouterr().out
    assert "## Forward" in page and "## Transposed" in page and "## Weight gradient" in page
    assert "12 of 12 results keep" in page
    assert "| strict, default, fast | 1 | " in page and "| 2, 6, 20 |" in page
