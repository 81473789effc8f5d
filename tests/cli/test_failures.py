"""How commands end: one message on stderr, the right exit code, and a traceback only for those who ask."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
import typer

from hubel.cli import main
from hubel.cli.failures import FAILED, INTERRUPTED, OK, exit_code
from hubel.errors import DataError, ModelError


def raises(error: BaseException):
    def command() -> None:
        raise error

    return command


def test_success_is_zero_and_a_commands_own_code_is_kept() -> None:
    assert exit_code(lambda: None) == OK
    assert exit_code(lambda: 130) == 130


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModelError("The rule. Received: x. Do y."), "error: The rule. Received: x. Do y.\n"),
        (DataError("No images."), "error: No images.\n"),
        (FileNotFoundError(2, "No such file or directory", "a.npz"), "error: No such file or directory: a.npz\n"),
        (OSError(28, "No space left on device"), "error: No space left on device\n"),
    ],
)
def test_our_errors_are_one_line(error: Exception, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(raises(error)) == FAILED
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", message)


def test_faults_say_what_they_are_and_how_to_see_more(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(raises(ZeroDivisionError("division\nby zero"))) == FAILED
    assert capsys.readouterr().err == (
        "error: unexpected ZeroDivisionError: division by zero. This is a fault in Hubel or in the model. "
        "Run it again with --debug for the traceback.\n"
    )


def test_debug_shows_the_traceback_before_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(raises(ModelError("Broken.")), debug=True) == FAILED
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") and lines[-1] == "error: Broken."


def test_ctrl_c_and_abort() -> None:
    assert exit_code(raises(KeyboardInterrupt())) == INTERRUPTED
    assert exit_code(raises(typer.Abort())) == INTERRUPTED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("demmo", "No such command 'demmo'"),
        ("zoo --frob", "No such option: --frob"),
        ("train lenet5", "Missing option '--data'"),
        ("plan", "Missing argument 'MODEL|SPEC'"),
        ("plan lenet5 --batch none", "Invalid value for '--batch'"),
        ("plan lenet5 --batch 0", "Invalid value for '--batch'"),
    ],
)
def test_a_command_line_that_does_not_parse(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments.split())
    assert caught.value.code == FAILED
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {message}") and captured.err.count("\n") == 1
    assert "--help" in captured.err


@pytest.mark.parametrize("arguments", [["--debug", "plan", "lenet6"], ["plan", "lenet6", "--debug"]])
def test_debug_may_stand_anywhere(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == FAILED
    assert "Traceback" in capsys.readouterr().err


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    assert "hubel demo" in capsys.readouterr().out


def hubel(*arguments: str, **options) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from hubel.cli import main; main()", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_a_reader_that_stops_early_is_no_error() -> None:
    """As in `hubel plan SPEC --ir | head -1`."""
    process = hubel("plan", "n1c64o64i56x56k3x3s1p1", "--ir")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() in (0, 1)


def test_ctrl_c_in_training_keeps_what_is_done(tmp_path) -> None:
    process = hubel("train", "lenet5", "--data", "digits", "--epochs", "5000", "-o", "run", cwd=tmp_path)
    assert process.stderr is not None
    for line in process.stderr:
        if "epoch 3" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == INTERRUPTED, err
    assert "interrupted" in out and "kept in run" in out
    assert (tmp_path / "run" / "weights.safetensors").is_file() and (tmp_path / "run" / "document.json").is_file()
    assert "Traceback" not in err
