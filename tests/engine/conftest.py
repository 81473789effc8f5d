"""What the tests of the engine share: the option that accepts new golden texts; threads for problems of any size."""

from __future__ import annotations

import pytest

from hubel.engine import invoke


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write the golden texts anew; name the test file beside it"
    )


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    # Unknown in runs that do not name this folder: pytest then loads this file after it has read the command line.
    return bool(request.config.getoption("update_golden", default=False))


@pytest.fixture(autouse=True)
def tiny_problems_use_threads_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a test which asks for two threads gets them."""
    monkeypatch.setattr(invoke, "SERIAL_FLOPS", 0)
