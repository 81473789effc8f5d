"""The shapes in which results are kept and passed on: Document, Record, Value, Finding (schema `hubel/1`).

A Document is one run (a training, a report, a check); its Records are tables and arrays, its Findings what
`hubel check` concluded from them. Everything that draws (terminal, HTML, JSON) reads these and computes nothing.

    Document
    ├── model, data, machine, versions, settings     what was looked at, on what, with what
    ├── records: [Record]                            rows of Values, and arrays
    └── findings: [Finding]                          evidence points back to a record, a target, a column

On disk: `document.json`, and beside it `arrays.npz` with the large numbers (no pickles). A number that does not
exist is null, with the reason in `Record.uncovered`; NaN and infinity are refused when writing, so that no reader meets
them. Readers ignore fields that they do not know. The JSON Schema is `hubel/schema/hubel-1.json`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import platform
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from hubel.errors import DataError
from hubel.records.codec import cell, from_fields, ordered, plain
from hubel.records.codec import json_schema as json_schema
from hubel.records.codec import write_atomically as write_atomically

SCHEMA = "hubel/1"
DOCUMENT_FILE = "document.json"
ARRAYS_FILE = "arrays.npz"


@dataclass(frozen=True)
class Value:
    """A number that was estimated, with its interval: `lo`..`hi` holds the truth with confidence `level`.

    Counted, exact numbers are plain ints or floats instead. `n` of `of` (images, seeds, rounds) were drawn, `how` names
    the method ("wilson", "bootstrap"), and `decided` says whether the interval excludes what it was compared with
    (None: nothing was compared). "Undecided" is a result.
    """

    value: float | None
    lo: float | None = None
    hi: float | None = None
    level: float = 0.95
    n: int | None = None
    of: Literal["images", "seeds", "rounds"] = "images"
    how: str = ""
    decided: bool | None = None

    def __str__(self) -> str:
        if self.value is None:
            return "n/a"
        if self.lo is None or self.hi is None:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} [{self.lo:.4g}, {self.hi:.4g}]"


Cell = Value | float | int | None
"""What stands in a table: a counted number, an estimated Value, or null (its reason is in `uncovered`)."""


@dataclass(frozen=True, eq=False)
class Array:
    """Numbers too many for a table; `data` in memory, one entry of `arrays.npz` on disk."""

    data: np.ndarray
    unit: str = ""


class Column(TypedDict):
    name: str
    unit: str
    better: Literal["up", "down"] | None


class Method(TypedDict):
    name: str
    params: dict[str, Any]
    source: str


class Uncovered(TypedDict):
    target: str
    reason: str


class InputInfo(TypedDict):
    shape: list[int]
    dtype: str


class ModelInfo(TypedDict):
    name: str
    sha256: str | None
    weights: Literal["file", "random"]
    params: int
    input: InputInfo
    preprocess: Any
    classes: list[str] | None
    output: Any


class Skipped(TypedDict):
    file: str
    reason: str


class Sample(TypedDict):
    n: int
    seed: int | None
    how: str


class DataInfo(TypedDict):
    name: str
    sha256: str
    n: int
    labelled: bool
    skipped: list[Skipped]
    class_counts: dict[str, int] | None
    sample: Sample


class Settings(TypedDict):
    profile: str | None
    seed: int | None
    accuracy: str
    threads: int
    engine: str


class Evidence(TypedDict):
    record: str
    target: str
    column: str


class Effects(TypedDict, total=False):
    accuracy: Cell
    kl: Cell
    ms: Cell


class Effect(Effects):
    how: Literal["measured", "computed"]


class Remedy(TypedDict):
    text: str
    fix: str | None
    tried: str | None


@dataclass
class Record:
    """What one analysis or one run found: a table of rows, and arrays.

    A row is `{"target": address, column: Cell, ...}`; the target is a layer ("conv1"), a kernel ("conv1:3"), a class,
    an epoch. `not_applicable`, `insufficient_data` and `failed` carry a `reason` and may have no rows.
    """

    id: str
    kind: str
    columns: list[Column] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    arrays: dict[str, Array] = field(default_factory=dict)
    version: int = 1
    status: Literal["ok", "not_applicable", "insufficient_data", "failed"] = "ok"
    reason: str | None = None
    level: Literal["model", "layer", "kernel"] = "model"
    tap: str | None = None
    method: Method = field(default_factory=lambda: Method(name="", params={}, source=""))
    seconds: float = 0.0
    uncovered: list[Uncovered] = field(default_factory=list)

    def row(self, target: str) -> dict[str, Any]:
        """The row of a target; KeyError if there is none."""
        for row in self.rows:
            if row["target"] == target:
                return row
        raise KeyError(target)

    def column(self, name: str) -> list[Cell]:
        """One column of the table, in the order of the rows (null where a row lacks it)."""
        return [row.get(name) for row in self.rows]


@dataclass
class Finding:
    """What `check` concluded from Records, as a linter says it: evidence, effect, and a remedy."""

    code: str
    name: str
    severity: Literal["error", "warning", "note"]
    decided: bool
    targets: list[str]
    message: str
    evidence: list[Evidence] = field(default_factory=list)
    effect: Effect | None = None
    remedy: Remedy | None = None
    fingerprint: str = ""
    rank: float = 0.0
    docs: str = ""


def now() -> str:
    """The time of writing, UTC, to the second: `2026-03-01T12:00:00Z`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Document:
    """One run, whole: `save(folder)` keeps it, `Document.load(folder)` reads it back, equal but for unknown fields."""

    model: ModelInfo
    data: DataInfo | None
    settings: Settings
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: versions())
    records: list[Record] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    status: Literal["complete", "interrupted"] = "complete"
    created: str = field(default_factory=now)
    hubel: str = field(default_factory=lambda: versions()["hubel"])
    schema: str = SCHEMA

    def record(self, id: str) -> Record:
        """The record with this id; KeyError, naming what is there, if there is none."""
        for record in self.records:
            if record.id == id:
                return record
        raise KeyError(f"no record {id!r}; there are {[record.id for record in self.records]}")

    def to_json(self) -> str:
        """The text of `document.json`: fields in the schema's order, free-form maps sorted, ends with a newline.

        DataError if a number is NaN or infinite, or if a cell is not a number, null or a Value.
        """
        ids = [record.id for record in self.records]
        if len(set(ids)) != len(ids):
            raise DataError(f"Record ids must be unique in a Document. Received: {ids}. Rename the ones that repeat.")
        body = {
            "schema": self.schema,
            "hubel": self.hubel,
            "created": self.created,
            "status": self.status,
            "model": ordered(self.model, ModelInfo, "model"),
            "data": None if self.data is None else ordered(self.data, DataInfo, "data"),
            "machine": plain(self.machine, "machine"),
            "versions": plain(self.versions, "versions"),
            "settings": ordered(self.settings, Settings, "settings"),
            "records": [_record_to_json(record) for record in self.records],
            "findings": [_finding_to_json(finding) for finding in self.findings],
        }
        return json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, arrays: Mapping[str, np.ndarray] | None = None) -> Document:
        """Read a Document. `arrays`: the entries of `arrays.npz` by name; without them records have no arrays."""
        try:
            body = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"A Document is JSON. Received text that is not: {error}. Write it again.") from None
        if not isinstance(body, dict) or body.get("schema") != SCHEMA:
            got = body.get("schema") if isinstance(body, dict) else type(body).__name__
            raise DataError(f"This version of hubel reads schema {SCHEMA!r}. Received: {got!r}. Upgrade hubel.")
        try:
            records = [_record_from_json(item, arrays or {}) for item in body.pop("records", [])]
            findings = [from_fields(Finding, item, Value) for item in body.pop("findings", [])]
            return from_fields(cls, {**body, "records": records, "findings": findings}, Value)
        except (TypeError, KeyError, AttributeError) as error:
            raise DataError(f"A Document has the fields of {SCHEMA!r}. Received one without: {error}.") from None

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays, by the name they have in `arrays.npz`: `<record id>/<key>`."""
        return {f"{rec.id}/{key}": array.data for rec in self.records for key, array in rec.arrays.items()}

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `document.json` and, if there are arrays, `arrays.npz` into `folder`; returns the former's path.

        Each file appears whole or not at all; the arrays come first, so that no document names what is not there.
        """
        folder = Path(folder)
        text, arrays = self.to_json(), self.arrays()
        for name, array in arrays.items():
            if array.dtype.hasobject:
                raise DataError(f"Arrays hold numbers or fixed-width text. Received objects in {name!r}. Convert them.")
        folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        # An open file keeps the names as they are; keyword arguments would refuse a key called "file".
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in arrays.items():
                with archive.open(zipfile.ZipInfo(name + ".npy"), "w") as entry:
                    np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)
        if arrays:
            write_atomically(folder / ARRAYS_FILE, buffer.getvalue())
        else:
            (folder / ARRAYS_FILE).unlink(missing_ok=True)
        write_atomically(folder / DOCUMENT_FILE, text.encode())
        return folder / DOCUMENT_FILE

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Document:
        """Read what `save` wrote. DataError if the folder holds no document, or a damaged one."""
        folder = Path(folder)
        folder = folder.parent if folder.name == DOCUMENT_FILE else folder
        path = folder / DOCUMENT_FILE
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise DataError(f"A run is a folder with a {DOCUMENT_FILE}. Received: {folder} ({reason}).") from None
        arrays: dict[str, np.ndarray] = {}
        if (folder / ARRAYS_FILE).exists():
            try:
                with (folder / ARRAYS_FILE).open("rb") as file, np.load(file, allow_pickle=False) as archive:
                    arrays = {name: archive[name] for name in archive.files}
            except (OSError, ValueError, zipfile.BadZipFile) as error:
                raise DataError(f"{folder / ARRAYS_FILE} is damaged ({error}). Repeat the run that wrote it.") from None
        return cls.from_json(text, arrays)


def versions() -> dict[str, str]:
    """What is installed of what a result may depend on, by distribution name; hubel and python always."""
    found = {"python": platform.python_version(), "hubel": "0+unknown"}
    for name in ("hubel", "torch", "numpy", "llvmlite", "safetensors"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return dict(sorted(found.items()))


def fingerprint(code: str, targets: Iterable[str], structure: str) -> str:
    """The name of a finding that CI can baseline: no clock, no path, no weights; `structure` = the model's layers."""
    return hashlib.sha256(json.dumps([code, sorted(targets), structure]).encode()).hexdigest()[:16]


def _record_to_json(record: Record) -> dict[str, Any]:
    where = f"records[{record.id}]"
    names = [column["name"] for column in record.columns]
    rows = []
    for row in record.rows:
        extra = set(row) - {"target", *names}
        if "target" not in row or extra:
            raise DataError(f"A row of {where} has 'target' and the columns {names}. Received: {sorted(row)}.")
        at = f"{where}.{row['target']}"
        rows.append({"target": str(row["target"])} | {n: cell(row[n], f"{at}.{n}") for n in names if n in row})
    arrays = {
        key: {"npz": f"{record.id}/{key}", "shape": list(a.data.shape), "dtype": str(a.data.dtype), "unit": a.unit}
        for key, a in record.arrays.items()
    }
    return {
        "id": record.id,
        "kind": record.kind,
        "version": record.version,
        "status": record.status,
        "reason": record.reason,
        "level": record.level,
        "tap": record.tap,
        "method": ordered(record.method, Method, f"{where}.method"),
        "seconds": plain(record.seconds, f"{where}.seconds"),
        "columns": [ordered(column, Column, f"{where}.columns") for column in record.columns],
        "rows": rows,
        "arrays": arrays,
        "uncovered": [ordered(item, Uncovered, f"{where}.uncovered") for item in record.uncovered],
    }


def _finding_to_json(finding: Finding) -> dict[str, Any]:
    where = f"findings[{finding.code}]"
    body = {f.name: getattr(finding, f.name) for f in dataclasses.fields(finding)}
    body["evidence"] = [ordered(item, Evidence, f"{where}.evidence") for item in finding.evidence]
    body["effect"] = finding.effect and ordered(finding.effect, Effect, f"{where}.effect")
    body["remedy"] = finding.remedy and ordered(finding.remedy, Remedy, f"{where}.remedy")
    return body | {name: plain(body[name], f"{where}.{name}") for name in ("targets", "message", "rank")}


def _record_from_json(body: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Record:
    listed = body.pop("arrays", {})
    record = from_fields(Record, body, Value)
    for key, entry in listed.items():
        data = arrays.get(entry["npz"])
        if data is None:
            continue
        if list(data.shape) != entry["shape"]:
            raise DataError(
                f"Array {entry['npz']!r} has the shape its document says, {entry['shape']}. "
                f"Received: {list(data.shape)}, from another run's {ARRAYS_FILE}. Repeat the run."
            )
        record.arrays[key] = Array(data, entry.get("unit", ""))
    return record
