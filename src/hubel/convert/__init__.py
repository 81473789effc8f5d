"""In and out: what the user calls a model (a name, a factory, a file) becomes a `torch.nn.Module`."""

from __future__ import annotations

from hubel.convert.models import Loaded as Loaded
from hubel.convert.models import resolve as resolve
from hubel.convert.weights import compare as compare
from hubel.convert.weights import load_into as load_into
from hubel.convert.weights import read_state_dict as read_state_dict
from hubel.convert.writers import export as export
