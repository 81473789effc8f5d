"""Documents become pages. `render` only draws; `build` runs the analyses; `report` does both.

    hubel.report(net, images, out="report.html")

The package is callable, because its name is also the name of what it does.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from hubel.records import Document, write_atomically
from hubel.report.build import build, document_of
from hubel.report.page import page

__all__ = ["report", "render", "build", "document_of"]


def render(document: Document, out: str | Path) -> Path:
    """Write the Document as one self-contained HTML file; returns its path. The file appears whole or not at all."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page(document).encode("utf-8"))
    return out


def report(net: Any, data: Any = None, out: str | Path = "report.html", **options: Any) -> Path:
    """Look into a network and write what is there as one HTML file; returns its path.

    net: any torch.nn.Module. data: images, as `hubel.data.load` takes them, labels optional; None: the kernels only.
    options: as `build` has them.
    """
    return render(build(net, data, **options), out)


class _Callable(ModuleType):
    def __call__(self, net: Any, data: Any = None, out: str | Path = "report.html", **options: Any) -> Path:
        return report(net, data, out, **options)


_Callable.__call__.__doc__ = report.__doc__
sys.modules[__name__].__class__ = _Callable
