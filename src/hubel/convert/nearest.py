"""Which network of the zoo a state dict is closest to, where it fits none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hubel.convert.weights import as_named_by

# Networks share names like conv1.weight by chance; below this nothing is said.
LEAST = 0.2


@dataclass(frozen=True)
class Nearest:
    """A network, and how many of its tensors the state dict has under the same name and in the same shape."""

    name: str
    shared: int
    of: int

    def __str__(self) -> str:
        return f"{self.name}, with {self.shared} of whose {self.of} tensors they agree in name and shape"


def nearest(state: Mapping[str, Tensor], networks: Mapping[str, Callable[[], nn.Module]]) -> Nearest | None:
    """The network whose names and shapes have most in common with `state`; None if none has much.

    Measured by |A ∩ B| / |A ∪ B| of pairs (name, shape); a name in another shape counts half. Shapes alone are built.
    """
    best: tuple[float, Nearest] | None = None
    for name, builder in networks.items():
        with torch.device("meta"):
            network = builder()
        wanted = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
        found = {key: tuple(tensor.shape) for key, tensor in as_named_by(network, state).items()}
        named = wanted.keys() & found.keys()
        shared = sum(wanted[key] == found[key] for key in named)
        score = (shared + 0.5 * (len(named) - shared)) / max(1, len(wanted.keys() | found.keys()))
        if best is None or score > best[0]:
            best = score, Nearest(name, shared, len(wanted))
    return best[1] if best is not None and best[0] >= LEAST else None
