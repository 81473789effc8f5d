"""Documents: both ways through JSON and npz, valid by the shipped schema, and clear about what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from hubel.errors import DataError
from hubel.records import (
    Array,
    Column,
    Document,
    Finding,
    Method,
    Record,
    Value,
    fingerprint,
    json_schema,
    write_atomically,
)


def document() -> Document:
    record = Record(
        id="kernels",
        kind="kernels",
        columns=[Column(name="norm", unit="", better="down"), Column(name="effect", unit="nat", better=None)],
        rows=[
            {"target": "conv1:0", "norm": 1.5, "effect": Value(0.1, 0.05, 0.2, 0.95, 50, "images", "bootstrap", True)},
            {"target": "conv1:1", "norm": np.float32(0.25), "effect": None},
        ],
        arrays={"weights": Array(np.arange(6, dtype=np.float32).reshape(2, 3), "1")},
        level="kernel",
        method=Method(name="norm", params={"p": 2}, source="definition"),
        seconds=0.5,
        uncovered=[{"target": "conv1:1", "reason": "too few images"}],
    )
    finding = Finding(
        code="HB101",
        name="dead-kernel",
        severity="warning",
        decided=True,
        targets=["conv1:1"],
        message="conv1:1 is never active",
        evidence=[{"record": "kernels", "target": "conv1:1", "column": "norm"}],
        effect={"ms": Value(0.2, 0.1, 0.3, n=7, of="rounds"), "how": "measured"},
        remedy={"text": "remove it", "fix": None, "tried": None},
        fingerprint=fingerprint("HB101", ["conv1:1"], "lenet5"),
    )
    return Document(
        model={
            "name": "lenet5",
            "sha256": None,
            "weights": "random",
            "params": 61706,
            "input": {"shape": [1, 1, 28, 28], "dtype": "float32"},
            "preprocess": None,
            "classes": ["0", "1"],
            "output": None,
        },
        data={
            "name": "digits",
            "sha256": "ab",
            "n": 50,
            "labelled": True,
            "skipped": [],
            "class_counts": {"0": 25, "1": 25},
            "sample": {"n": 50, "seed": None, "how": "all"},
        },
        settings={"profile": None, "seed": 0, "accuracy": "default", "threads": 2, "engine": "hubel"},
        records=[record],
        findings=[finding],
    )


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    saved = document()
    saved.save(tmp_path / "run")
    loaded = Document.load(tmp_path / "run")
    assert loaded.to_json() == saved.to_json()
    assert loaded.record("kernels").row("conv1:0")["effect"] == saved.records[0].rows[0]["effect"]
    assert loaded.findings[0].effect == saved.findings[0].effect
    np.testing.assert_array_equal(loaded.record("kernels").arrays["weights"].data, np.arange(6).reshape(2, 3))
    assert loaded.record("kernels").arrays["weights"].unit == "1"


def test_a_document_is_valid_by_the_shipped_schema() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    body = json.loads(document().to_json())
    validator.validate(body)
    body["records"][0]["rows"][0]["norm"] = "big"
    assert not validator.is_valid(body)


def test_the_same_document_is_written_as_the_same_bytes(tmp_path: Path) -> None:
    first, second = document(), document()
    second.created = first.created
    second.machine = dict(reversed(list(first.machine.items())))
    first.save(tmp_path / "a")
    second.save(tmp_path / "b")
    for name in ("document.json", "arrays.npz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_unknown_fields_are_ignored() -> None:
    body = json.loads(document().to_json())
    body["weather"] = "fine"
    body["records"][0]["mood"] = 1
    body["records"][0]["rows"][0]["effect"]["shade"] = 2
    body["findings"][0]["tone"] = 3
    assert Document.from_json(json.dumps(body)).record("kernels").row("conv1:1")["effect"] is None


@pytest.mark.parametrize("number", [float("nan"), float("inf"), np.float32("-inf")])
def test_a_number_that_is_none_is_refused_with_its_address(number: float) -> None:
    bad = document()
    bad.records[0].rows[0]["norm"] = number
    with pytest.raises(DataError, match=r"finite.*records\[kernels\].conv1:0.norm.*None and a reason"):
        bad.to_json()


def test_text_in_a_cell_and_cells_without_a_column_are_refused() -> None:
    bad = document()
    bad.records[0].rows[0]["norm"] = "large"
    with pytest.raises(DataError, match=r"a number, None or a Value.*str at"):
        bad.to_json()
    bad = document()
    bad.records[0].rows[0]["colour"] = 1
    with pytest.raises(DataError, match="the columns"):
        bad.to_json()


def test_missing_fields_and_repeated_ids_are_named() -> None:
    bad = document()
    del bad.model["params"]  # type: ignore[misc]
    with pytest.raises(DataError, match=r"Missing: \['params'\]"):
        bad.to_json()
    bad = document()
    bad.records.append(bad.records[0])
    with pytest.raises(DataError, match="unique"):
        bad.to_json()


def test_pickles_are_neither_written_nor_read(tmp_path: Path) -> None:
    bad = document()
    bad.records[0].arrays["weights"] = Array(np.array([{}], dtype=object))
    with pytest.raises(DataError, match="objects in 'kernels/weights'"):
        bad.save(tmp_path)
    assert list(tmp_path.iterdir()) == []
    document().save(tmp_path)
    np.savez(tmp_path / "arrays.npz", **{"kernels/weights": np.array([{}], dtype=object)})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="damaged"):
        Document.load(tmp_path)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"A run is a folder with a document\.json"):
        Document.load(tmp_path / "nowhere")
    path = document().save(tmp_path)
    whole = (tmp_path / "arrays.npz").read_bytes()
    (tmp_path / "arrays.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged"):
        Document.load(tmp_path)
    np.savez(tmp_path / "arrays.npz", **{"kernels/weights": np.zeros(5)})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="another run"):
        Document.load(tmp_path)
    path.write_text(path.read_text().replace("hubel/1", "hubel/2"))
    with pytest.raises(DataError, match=r"'hubel/2'\. Upgrade"):
        Document.load(tmp_path)
    path.write_text("{")
    with pytest.raises(DataError, match="is JSON"):
        Document.load(tmp_path)
    path.write_text('{"schema": "hubel/1"}')
    with pytest.raises(DataError, match="missing"):
        Document.load(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_fingerprints_depend_on_the_finding_alone() -> None:
    assert fingerprint("HB101", ["a", "b"], "net") == fingerprint("HB101", ["b", "a"], "net")
    assert fingerprint("HB101", ["a"], "net") != fingerprint("HB102", ["a"], "net")
    assert fingerprint("HB101", ["a"], "net") != fingerprint("HB101", ["a"], "other")
