"""hubel zoo · cache · doctor: what there is, what is kept, what is seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from hubel.cli.failures import FAILED, OK
from hubel.cli.terminal import console, plain_table


def zoo() -> None:
    """List the networks that can be built by name: whose parameter names they have, and where they come from."""
    from hubel.zoo import ZOO

    table = plain_table("network", "parameters", "input", "year", "arXiv", "names")
    for name, network in ZOO.items():
        size = "×".join(map(str, network.input))
        row = (f"{network.parameters:,}", size, str(network.year), network.arxiv or "-", network.names)
        table.add_row(name, *row)
    console().print(table)


def cache(
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove every kernel on disk, what was measured, what was seen.")
    ] = False,
    export_wisdom: Annotated[Path | None, typer.Option(metavar="FILE", help="Write which plans measured best.")] = None,
    import_wisdom: Annotated[Path | None, typer.Option(metavar="FILE", help="Add what such a file knows.")] = None,
) -> None:
    """Show, or clear, the folder of compiled kernels; carry away what was measured."""
    from hubel import doctor
    from hubel.engine import cache as kernels
    from hubel.engine import wisdom

    if clear:
        from hubel.inspect import store

        removed = kernels.clear()
        looked = store.clear()
        console().print(f"removed {removed} kernel{'' if removed == 1 else 's'}")
        if looked:
            console().print(f"removed what was seen of {looked} network{'' if looked == 1 else 's'}")
    if import_wisdom:
        console().print(f"learned {wisdom.import_wisdom(import_wisdom)} plans from {import_wisdom}", soft_wrap=True)
    if export_wisdom:
        console().print(f"wrote {wisdom.export_wisdom(export_wisdom)} plans to {export_wisdom}", soft_wrap=True)
    info = kernels.cache_info()
    if not info.enabled:
        console().print(f"off: {info.reason}")
        return
    console().print(f"{info.entries} kernels, {doctor.size(info.bytes)} in {info.path}", soft_wrap=True)


def doctor(
    measure: Annotated[bool, typer.Option(help="Measure peak and bandwidth (the first time).")] = True,
) -> int:
    """Say what the engine sees of this machine, what is supported, and whether it is set up well."""
    from hubel.doctor import examine

    lines = examine(measure=measure)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    marks = {"ok": "", "note": "note: ", "fault": "fault: "}
    for line in lines:
        table.add_row(line.name, line.value)
        if line.remedy:
            table.add_row(
                "", f"{marks[line.verdict]}{line.remedy}", style="yellow" if line.verdict == "note" else "red"
            )
    console().print(table)
    faults, notes = (sum(line.verdict == verdict for line in lines) for verdict in ("fault", "note"))
    console().print(f"faults: {faults}, notes: {notes}" if faults or notes else "all well")
    return FAILED if faults else OK
