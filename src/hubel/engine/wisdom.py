"""What measuring found: which plan of a problem was fastest on this machine ("wisdom", as FFTW calls it).

Kept in the cache folder and in files that can be carried to a machine of the same kind. An entry only names one of the
plans that this engine proposes anyway, all of which give the same bits; no number in it reaches a kernel. So a file
that is damaged, or was written by another version or for another machine, can do no harm: it is ignored, which is said
once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Sequence
from pathlib import Path

from hubel.engine import cache
from hubel.engine.compile import engine_version
from hubel.engine.machine import Machine
from hubel.engine.plan import Plan
from hubel.errors import DataError

logger = logging.getLogger("hubel")

FORMAT = "hubel-wisdom-1"

_lock = threading.Lock()
_entries: dict[str, str] = {}
_read_from: str | None = None
_said: set[str] = set()


def recall(plans: Sequence[Plan]) -> Plan | None:
    """Which of the plans of a problem was fastest, if that has been measured."""
    with _lock:
        _read()
        found = _entries.get(_question(plans[0]))
    return next((plan for plan in plans if _answer(plan) == found), None)


def remember(plan: Plan) -> None:
    """Keep that this plan was the fastest of its problem."""
    with _lock, cache.disk().locked("wisdom"):
        _read(again=True)
        _entries[_question(plan)] = _answer(plan)
        cache.disk().write_json("wisdom", _key(), _entries)


def forget() -> None:
    """Forget all of it, on disk too."""
    with _lock, cache.disk().locked("wisdom"):
        _entries.clear()
        cache.disk().write_json("wisdom", _key(), {})


def export_wisdom(path: Path | str) -> int:
    """Write what was measured on this machine to a file; returns how many problems it knows. Raises DataError."""
    from hubel.records.codec import write_atomically

    with _lock:
        _read()
        document = {"format": FORMAT, "for": _key(), "entries": dict(sorted(_entries.items()))}
    document["sha256"] = _checksum(document)
    try:
        write_atomically(path, json.dumps(document, indent=1).encode())
    except OSError as error:
        raise DataError(f"Wisdom is written to a file. Received: {path} ({error.strerror}). Name another.") from None
    return len(document["entries"])


def import_wisdom(path: Path | str) -> int:
    """Add what a file knows to what is known here; returns how many problems it added or changed.

    A file of another machine or version of Hubel, or a damaged one, is ignored, which is said once. Raises DataError
    where there is no such file.
    """
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"Wisdom is read from a file. Received: {path} ({error.strerror}).") from None
    entries, why = _believed(text)
    if why:
        _say(f"wisdom in {path} is ignored: {why}")
        return 0
    with _lock, cache.disk().locked("wisdom"):
        _read(again=True)
        added = {question: answer for question, answer in entries.items() if _entries.get(question) != answer}
        _entries.update(added)
        cache.disk().write_json("wisdom", _key(), _entries)
    return len(added)


def _believed(text: bytes) -> tuple[dict[str, str], str]:
    """The entries of a file, or why they are not believed."""
    try:
        document = json.loads(text)
    except ValueError:
        return {}, "it is damaged"
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        return {}, f"it is not of the format {FORMAT}"
    if document.pop("sha256", None) != _checksum(document) or not _well_formed(document.get("entries")):
        return {}, "it is damaged"
    if document.get("for") != _key():
        return {}, "it was written on another machine or by another version of Hubel"
    return document["entries"], ""


def _well_formed(entries: object) -> bool:
    return isinstance(entries, dict) and all(isinstance(text, str) for item in entries.items() for text in item)


def _read(again: bool = False) -> None:
    """Have what the cache folder knows, which another process may have added to."""
    global _read_from
    place = f"{cache.disk().path} {_key()}"
    if place == _read_from and not again:
        return
    if place != _read_from:
        _entries.clear()
    _read_from = place
    stored = cache.disk().read_json("wisdom", _key())
    if isinstance(stored, dict) and _well_formed(stored):
        _entries.update(stored)
    elif cache.disk().enabled and (file := cache.disk().path / "wisdom.json").exists():
        _say(
            f"wisdom in {file} is ignored: it is damaged, or was written on another machine or by another version of "
            "Hubel"
        )


def _key() -> str:
    """What wisdom is true for: the machine as far as plans depend on it, and this very engine."""
    return f"{Machine.detect()} {engine_version()}"


def _question(plan: Plan) -> str:
    policy = plan.policy
    bits = "same bits" if policy.deterministic else "any bits"
    return f"{plan.problem} {policy.accuracy} {bits} threads {policy.threads}"


def _answer(plan: Plan) -> str:
    box = "x".join(map(str, plan.box))
    return f"{plan.algorithm} tile {plan.tile} box {box} row_tiles {plan.row_tiles} images {plan.images}"


def _checksum(document: dict) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _say(what: str) -> None:
    if what not in _said:
        _said.add(what)
        logger.warning("%s", what)
