"""One clear message instead of a traceback: how every command ends.

0      done
1      `hubel check` found something; a pipe that closed early
2      nothing could be done: `error: ...` once on stderr
130    Ctrl-C; what was done is kept
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

import typer

from hubel.errors import HubelError

OK, FOUND, FAILED, INTERRUPTED = 0, 1, 2, 130

# typer's public names have the leaf of its tree of usage errors only; this is the root: it can format itself.
_UsageError: type[Exception] = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")


def exit_code(command: Callable[[], object], *, debug: bool = False) -> int:
    """Run `command`; print at most one `error: ...` line on stderr and return the process's exit code.

    debug: tracebacks as Python prints them, before the message.
    """
    try:
        code = command()
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted. Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except _UsageError as error:
        return _failed(_usage(error), debug)
    except HubelError as error:
        return _failed(str(error), debug)
    except OSError as error:
        return _failed(_os_error(error), debug)
    except typer.Abort:
        return INTERRUPTED
    except Exception as error:
        text = " ".join(str(error).split()) or "no message"
        hint = "" if debug else " Run it again with --debug for the traceback."
        return _failed(
            f"unexpected {type(error).__name__}: {text}. This is a fault in Hubel or in the model.{hint}", debug
        )
    return code if isinstance(code, int) else OK


def say(text: str) -> None:
    """One line on stderr, past whatever a progress bar is doing."""
    print(text, file=sys.stderr, flush=True)


def _failed(message: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    say(f"error: {message}")
    return FAILED


def _usage(error: Exception) -> str:
    message: str = error.format_message() if hasattr(error, "format_message") else str(error)  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "hubel"
    return f"{message if message.endswith(('.', '?')) else message + '.'} See: {command} --help"


def _os_error(error: OSError) -> str:
    if error.filename is None:
        return f"{error.strerror or error}"
    return f"{error.strerror or type(error).__name__}: {error.filename}"
