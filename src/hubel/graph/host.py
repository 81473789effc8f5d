"""What the graph asks of whoever holds it: operators that are not its own, and the tensors that these take.

`graph` knows no torch. A node `torch` is a name and arguments to it; the host, in `ops`, says what shapes it makes,
runs it, and turns memory of the arena into what such an operator reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np


class Made(NamedTuple):
    """What an operator makes: a shape and a dtype as numpy writes it; shape None for what is no tensor."""

    shape: tuple[int, ...] | None
    dtype: str


class Host(Protocol):
    """Runs foreign operators."""

    def makes(self, target: str, arguments: Any, keywords: Any, operands: Sequence[Made | tuple[Made, ...]]) -> Any:
        """A `Made`, or a tuple of them, for operands like these. Arguments name operands by `Operand`."""
        ...

    def call(self, target: str, arguments: Any, keywords: Any, operands: Sequence[Any]) -> Any:
        """Run it. operands: what `view` gave, or what other calls returned."""
        ...

    def view(self, memory: np.ndarray) -> Any:
        """Memory of the arena, as an operand; writes to one are seen in the other."""
        ...

    def copy(self, value: Any, view: Any) -> None:
        """Write what a call returned into a view."""
        ...


@dataclass(frozen=True)
class Operand:
    """In the arguments of a foreign operator: the node's input of this number."""

    index: int
