"""The command line: parse, call one function, print.

hubel demo · train · bench      the main job, training, timing           cli/work.py
hubel plan                      what will run, and why                    cli/look.py
hubel report                    what was learned, on one page             cli/report.py
hubel check                     what is wrong with a network               cli/check.py
hubel export                    a network as a file that others run       cli/carry.py
hubel zoo · cache · doctor      what there is, what is kept, what is seen cli/house.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated

import typer

from hubel.cli import carry, check, house, look, report, work
from hubel.cli.failures import exit_code

app = typer.Typer(
    name="hubel",
    help="Convolution kernels for PyTorch on the CPU: fast, visible, accountable.",
    epilog="Start with: hubel demo",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS = (
    *(work.demo, work.train, work.bench),
    *(look.plan, report.report, check.check),
    carry.export,
    *(house.zoo, house.cache, house.doctor),
)
for command in COMMANDS:
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"hubel {metadata.version('hubel')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks; may stand anywhere in the line.")] = False,
) -> None:
    """Convolution kernels for PyTorch on the CPU: fast, visible, accountable."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point `hubel`. Exits: 0 done, 1 `check` found something, 2 nothing could be done, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    sys.exit(exit_code(lambda: app(args=words, prog_name="hubel", standalone_mode=False), debug=debug))
