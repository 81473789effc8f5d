"""A `.hubel` file, which a Session wrote, as a network: it runs, and what it runs can be planned.

Its batch norms are folded and its activations fused, so that there are no layers in it to look at.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from hubel.convert.exported import Exported
from hubel.convert.weights import require_file
from hubel.ops.session import Session


class Frozen(nn.Module):
    """A Session as a module without parameters."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    def forward(self, *inputs: Any) -> Any:
        return self.session(*inputs)


def read_frozen(path: Path) -> Exported:
    """The network of the file. ModelError if there is none or it is damaged; nothing in it is executed."""
    require_file(path, "MODEL")
    session = Session.load(path)
    first = next(iter(session.graph.inputs.values()), None)
    if first is None or not first.shape:
        return Exported(Frozen(session), None, None)
    return Exported(Frozen(session), first.example[1:] or None, first.shape[0])
