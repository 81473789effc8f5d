"""The public names: they are there, and importing them costs no more than torch and the engine."""

from __future__ import annotations

import subprocess
import sys

import pytest

import hubel

CODE = """
import sys, torch
before = set(sys.modules)
import hubel
new = set(sys.modules) - before
heavy = "torch._dynamo torch._inductor torch.fx.experimental.symbolic_shapes matplotlib sklearn scipy PIL rich typer"
print([name for name in heavy.split() if name in new])
rooms = {name.split(".")[1] for name in new if name.startswith("hubel.")}
print(sorted(rooms - {"engine", "ops", "errors"}))
"""


def test_importing_hubel_stays_cheap():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[]"]


@pytest.mark.parametrize("name", hubel.__all__)
def test_every_public_name_exists(name):
    assert getattr(hubel, name) is not None
    assert name in dir(hubel)


def test_what_is_callable_is_documented():
    for name in hubel.__all__:
        assert getattr(hubel, name).__doc__, name


def test_other_names_are_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'convolve4d'"):
        _ = hubel.convolve4d  # type: ignore[attr-defined]
