"""What holds the house together: public names, the README, the packaging, the order of the rooms."""

from __future__ import annotations

import doctest
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import typer.main

import hubel
from hubel.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(path.name for path in ROOT.glob("*.md"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def fresh_python(code: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, where warnings are errors as everywhere in the tests."""
    return subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize("name", hubel.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(hubel, name) is not None


def test_public_names_are_listed_and_unknown_ones_refused() -> None:
    assert set(hubel.__all__) <= set(dir(hubel))
    assert len(set(hubel.__all__)) == len(hubel.__all__)
    with pytest.raises(AttributeError, match="convd"):
        hubel.convd  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_importing_hubel_stays_cheap() -> None:
    """No dynamo, no plotting, no data sets, no terminal: what only some users need is imported when it is used."""
    heavy = [
        "torch._dynamo",
        "torch._inductor",
        "matplotlib",
        "sklearn",
        "mlxtend",
        "rich",
        "typer",
        "PIL",
        "onnxruntime",
    ]
    code = f"import sys, hubel; print([name for name in {heavy!r} if name in sys.modules])"
    done = fresh_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_version_is_said_once() -> None:
    assert hubel.__version__ == metadata.version("hubel") == PYPROJECT["project"]["version"]


@pytest.mark.parametrize("group", ["console_scripts", "torch_dynamo_backends"])
def test_entry_points_lead_somewhere(group: str) -> None:
    (point,) = metadata.entry_points(group=group, name="hubel")
    assert callable(point.load())


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_of_the_repository(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [link for link in links if link and "://" not in link and not (ROOT / link).exists()]
    assert missing == []


def test_the_readmes_python_runs(tmp_path: Path) -> None:
    """All blocks in one process, from top to bottom, as a reader would paste them."""
    code = "\n".join(blocks(README, "python"))
    assert "hubel.enable()" in code
    done = fresh_python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").is_file()


def test_the_objects_printed_in_the_architecture_are_what_is_printed() -> None:
    failed, tried = doctest.testfile(str(ROOT / "ARCHITECTURE.md"), module_relative=False, encoding="utf-8")
    assert failed == 0 and tried > 10


def test_the_readmes_commands_exist() -> None:
    """Each `hubel` line parses: the command and its options are there. `make` lines name targets of the Makefile."""
    lines = [line.split(" #")[0].strip() for block in blocks(README, "sh") for line in block.splitlines()]
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for line in filter(None, lines):
        program, name, *words = shlex.split(line)
        if program == "make":
            assert name in targets, line
            continue
        assert program == "hubel" and name in commands, line
        commands[name].make_context(name, words)
    assert {line.split()[1] for line in lines if line.startswith("hubel")} == set(commands)


def test_two_commands_tell_the_way_and_ci_runs_one_of_them() -> None:
    first = blocks(README, "sh")[0]
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make demo", "make test"]
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_figures_in_the_readme_name_the_run_they_come_from() -> None:
    figures = README.split("<!-- figures: begin")[1].split("-->", 1)[1].split("<!-- figures: end -->")[0]
    files = re.findall(r"\(benchmarks/results/([^)]+)\)", figures)
    assert files or not re.search(r"\d", figures)
    assert all((ROOT / "benchmarks" / "results" / file).is_file() for file in files)


def test_constraints_pin_everything_that_is_asked_for() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pinned = {name.lower().replace("_", "-") for name in pins}
    project = PYPROJECT["project"]
    wanted = project["dependencies"] + [
        entry
        for extra in ("lab", "bench", "onnx", "examples", "dev")
        for entry in project["optional-dependencies"][extra]
    ]
    names = {re.split(r"[\[<>=]", entry)[0].strip().lower() for entry in wanted}
    assert names <= pinned
    # A local version ("+cpu") would shut out every other build of the same release.
    assert not any("+" in version for version in pins.values())


def test_every_room_has_its_place_in_the_order_of_imports() -> None:
    layers = PYPROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    placed = {room.strip(" ()") for layer in layers for room in layer.split("|")}
    rooms = {
        path.stem
        for path in (ROOT / "src" / "hubel").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    rooms |= {path.parent.name for path in (ROOT / "src" / "hubel").glob("*/*.py")}
    assert rooms - {"__init__"} <= placed


def test_committed_files_name_no_path_of_this_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    paths = (f"{ROOT}/", f"{Path.home()}/")
    texts = [
        ROOT / name
        for name in listed.stdout.split("\n")
        if Path(name).suffix in {".py", ".md", ".toml", ".txt", ".json"}
    ]
    named = [
        path.name for path in texts if path.is_file() and any(p in path.read_text(encoding="utf-8") for p in paths)
    ]
    assert named == []
