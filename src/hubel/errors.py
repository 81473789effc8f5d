"""Everything Hubel raises on purpose. One message each: the rule, what was received, the remedy.

    HubelError                            catch this to catch all of ours; the command line prints it and exits with 2
    ├── SpecError          (ValueError)   a convolution that cannot exist: sizes, groups, a text that does not parse
    ├── ModelError                        a network or a weight file that cannot be built, read or run
    ├── DataError          (ValueError)   images or labels that cannot be used
    ├── UnknownNameError   (LookupError)  a name that is in no table of ours; the message offers the near ones
    ├── TrainingDiverged                  the loss is no longer a number
    ├── CacheError                        an object-code cache that must not be used
    └── UnsupportedError                  a valid convolution that our kernels decline; torch's are used instead

Where a standard exception means the same, ours derives from it too, so that callers who never heard of Hubel
still catch it. `UnknownNameError` is no `KeyError`: Python prints those as the repr of their message.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# A longer table than this is named by its near entries only.
_LISTED = 12


class HubelError(Exception):
    """The root of the tree. `str(error)` is a whole message: rule, what was received, remedy."""


class SpecError(HubelError, ValueError):
    """No such convolution exists, or its text does not follow the grammar of `hubel.engine.problem`."""


class ModelError(HubelError):
    """A network or its weights could not be found, read, built or run."""


class DataError(HubelError, ValueError):
    """Images or labels are missing, unreadable, of the wrong shape or out of range."""


class UnknownNameError(HubelError, LookupError):
    """A name that its table does not have. Made by `unknown`, which offers the near names."""


class TrainingDiverged(HubelError):
    """The loss became NaN or infinite; the message says at which step, the last good weights are kept."""


class CacheError(HubelError):
    """The folder or an entry of the object-code cache cannot be trusted or used."""


class UnsupportedError(HubelError):
    """A valid request that Hubel's own code declines; the message is the reason that plans and logs show."""


def unknown(kind: str, name: object, table: Iterable[str]) -> UnknownNameError:
    """The error for a `name` that is not among the names of `table`; the caller raises it.

    kind: what the table holds, in the singular ("network", "analysis"); it opens the message.
    """
    names = [str(entry) for entry in table]
    folded = {entry.casefold(): entry for entry in names}
    near = [folded[key] for key in difflib.get_close_matches(str(name).casefold(), folded, n=3, cutoff=0.5)]

    parts = [f'unknown {kind} "{name}".']
    if near:
        parts.append(f"Did you mean {_either(near)}?")
    if not names:
        parts.append("None is known.")
    elif len(names) <= _LISTED:
        parts.append(f"Known: {', '.join(names)}.")
    elif not near:
        parts.append(f"{len(names)} are known, among them {', '.join(names[:_LISTED])}.")
    return UnknownNameError(" ".join(parts))


def _either(names: list[str]) -> str:
    quoted = [f'"{name}"' for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"
