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
    """A Session as a module without parameters. channels: of an image, None where the network takes something else."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        shape = self.shapes[0]
        self.channels = shape[1] if len(shape) > 2 else None

    @property
    def shapes(self) -> list[tuple[int | None, ...]]:
        """Of each input, None for every size that is free."""
        return [given.shape for given in self.session.graph.inputs.values()]

    def forward(self, *inputs: Any) -> Any:
        return self.session(*inputs)


def read_frozen(path: Path) -> Exported:
    """The network of the file. ModelError if there is none or it is damaged; nothing in it is executed."""
    require_file(path, "a network of a Session")
    network = Frozen(Session.load(path))
    batch, *image = network.shapes[0]
    return Exported(network, None if None in image else tuple(size or 0 for size in image), batch)
