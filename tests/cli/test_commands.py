"""Each command, typed: what it prints, what it writes, and what it says to bad input."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hubel import zoo
from hubel.cli import main
from hubel.ops.accuracy import set_accuracy
from hubel.records import Document

SPEC = "n1c16o24i9x9k3x3s2p1"


class Typed:
    """What a command line printed and how it ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def error(self) -> str:
        """The one message of a command that could do nothing."""
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert (self.code, len(errors)) == (2, 1), self.err
        assert "Traceback" not in self.err
        return errors[0].removeprefix("error: ")


Type = Callable[..., Typed]


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Type]:
    """Type a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()

    def run(line: str, *more: str) -> Typed:
        with pytest.raises(SystemExit) as caught:
            main([*line.split(), *more])
        captured = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Typed(caught.value.code, captured.out, captured.err)

    yield run
    set_accuracy("default")
    torch.set_num_threads(threads)


def test_zoo_lists_every_network(typed: Type) -> None:
    done = typed("zoo")
    assert done.code == 0
    assert all(name in done.out for name in zoo.ZOO) and "61,706" in done.out
    (line,) = (line for line in done.out.splitlines() if line.startswith("resnet50 "))
    assert line.split() == "resnet50 25,557,032 3×224×224 2015 1512.03385 torchvision".split()


def test_version(typed: Type) -> None:
    assert typed("--version").out.startswith("hubel 0.1")


def test_cache_says_where_and_clears(typed: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUBEL_CACHE_DIR", str(tmp_path / "kernels"))
    assert f"0 kernels, 0 B in {tmp_path / 'kernels'}" in typed("cache").out
    assert typed("cache --clear").out.startswith("removed 0 kernels")


def test_cache_that_is_off_says_why(typed: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv("HUBEL_CACHE_DIR", str(tmp_path / "open"))
    assert typed("cache").out.startswith("off: ")


def test_plan_of_a_problem(typed: Type) -> None:
    done = typed(f"plan {SPEC}")
    assert done.code == 0
    assert f"problem      {SPEC}" in done.out
    for word in ("algorithm", "kernels", "tile", "work", "error"):
        assert f"\n{word} " in done.out


@pytest.mark.parametrize(("form", "word"), [("--ir", "define"), ("--asm", "ret")])
def test_plan_prints_kernels(typed: Type, form: str, word: str) -> None:
    for what in (SPEC, "lenet5"):
        done = typed(f"plan {what} {form}")
        assert done.code == 0 and word in done.out


def test_plan_for_another_machine(typed: Type) -> None:
    done = typed(f"plan {SPEC} --machine zen3 --asm")
    assert done.code == 0 and "ymm" in done.out and "zmm" not in done.out


def test_plan_of_a_network(typed: Type) -> None:
    done = typed("plan lenet5 --batch 4")
    assert done.code == 0
    assert "n4c1o6i28x28k5x5s1p2/bias" in done.out and "2 of 2 convolutions on Hubel's kernels" in done.out
    assert "random weights" in done.err
    assert len(typed("plan lenet5 --backward").out.splitlines()) == 8


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("plan lenet6", 'unknown network "lenet6". Did you mean "lenet5"'),
        ("plan n1c64", 'names no convolution: "o"'),
        ("plan n1c3o4i2x2k5x5", "5"),
        (f"plan {SPEC} --machine zen9", 'unknown machine "zen9". Did you mean "zen5"'),
        (f"plan {SPEC} --accuracy exact", 'unknown accuracy "exact"'),
        ("plan lenet5 --input-size 3y4", "--input-size is one to three positive numbers"),
        ("plan lenet5 --input-size 5", "The network must run on the given input. Received: [1, 1, 5, 5]"),
        ("plan nowhere.safetensors --arch lenet5", "nowhere.safetensors (No such file or directory)"),
        ("plan net.onnx", "net.onnx (No such file or directory)"),
        ("plan no_such_module:net", "must name a module that can be imported"),
        ("export lenet5 -o net.tflite", 'unknown ending of an exported file ".tflite". Known: .onnx, .pt2'),
        ("export lenet5 -o nowhere/net.pt2", "into a folder that exists. Received: nowhere/net.pt2"),
        ("train lenet6 --data digits", 'unknown network "lenet6"'),
        ("train lenet5 --data digitz", 'unknown data set "digitz"'),
        ("train lenet5 --data digits --optimizer adamm", 'unknown optimizer "adamm". Did you mean "adam"'),
        ("train lenet5 --data digits --engine cuda", 'unknown engine "cuda"'),
        ("train lenet5 --data digits --lr -1", "the learning rate, is a positive number"),
        ("bench lenet6", 'unknown network or shape list "lenet6"'),
        (f"bench {SPEC} --against tourch", 'unknown engine "tourch". Did you mean "torch"'),
        ("bench --step lenet5 lenet5", "--step times one thing"),
        ("bench --step dcgan_generator", "one score a class. Received: dcgan_generator, which gives an image"),
        ("check ds_cnn --data digits", "shows images to the network. Received: ds_cnn, which takes sounds of 1×16000"),
        ("report ds_cnn --data digits", "shows images to the network. Received: ds_cnn, which takes sounds of 1×16000"),
        ("report lenet5 --before nowhere.pth", "nowhere.pth"),
        ("report lenet6", 'unknown network "lenet6"'),
        ("report lenet5 --only kernel", 'unknown analysis "kernel". Did you mean "kernels"'),
        ("report lenet5 --data nowhere", "nowhere"),
        ("report lenet5 --data digits --preprocess imagnet", "--preprocess is unit, imagenet"),
        ("report lenet5 --data digits --classes names.txt", "--classes is a text file, a class name a line"),
    ],
)
def test_bad_input_is_one_clear_message(typed: Type, line: str, message: str) -> None:
    assert message in typed(line).error


def test_a_folder_without_images(typed: Type, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty" in typed("train lenet5 --data empty").error
    assert not (tmp_path / "runs").exists()


def test_labels_out_of_range(typed: Type, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", images=np.zeros((20, 28, 28), np.uint8), labels=np.arange(20) - 3)
    assert "abels" in typed("train lenet5 --data bad.npz").error


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_weights(typed: Type, tmp_path: Path) -> None:
    message = typed("train lenet5 --data digits --optimizer sgd --lr 1e30 --epochs 2 -o run").error
    assert "The loss must stay a number" in message and "at step " in message and "kept in run" in message
    assert (tmp_path / "run" / "weights.safetensors").is_file()


def test_the_wrong_weights_name_the_keys(typed: Type, tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(7, 1, 5, 5)}, tmp_path / "other.safetensors")
    message = typed("plan other.safetensors --arch lenet5").error
    assert "conv1.weight [7, 1, 5, 5] where the network has [6, 1, 5, 5]" in message
    assert "missing: conv1.bias" in message


def test_training_then_everything_that_takes_its_run(typed: Type, tmp_path: Path) -> None:
    done = typed("train lenet5 --data digits --epochs 1 --threads 1")
    assert done.code == 0 and "held-out images are right" in done.out
    assert "hubel report runs/lenet5-digits --data digits" in done.out
    assert typed("train lenet5 --data digits --epochs 1").code == 0
    assert (tmp_path / "runs" / "lenet5-digits-2").is_dir()
    assert "with a run" in typed("train lenet5 --data digits --epochs 1 -o runs/lenet5-digits").error

    done = typed("report runs/lenet5-digits -o page.html")
    assert done.code == 0 and done.out == "page.html\n" and "trained on digits" in done.err
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "weights from runs/lenet5-digits" in typed("plan runs/lenet5-digits").err
    text = typed("report runs/lenet5-digits/weights.safetensors --arch lenet5 --data digits --text").out
    assert "weights from a file" in text and "conv2:15" in text

    (tmp_path / "runs" / "lenet5-digits" / "weights.safetensors").write_bytes(b"damaged")
    assert "weights.safetensors" in typed("report runs/lenet5-digits").error


def test_a_report_on_random_weights_says_so(typed: Type) -> None:
    done = typed("report lenet5 --only kernels --json")
    assert done.code == 0
    document = Document.from_json(done.out)
    assert document.model["weights"] == "random" and [record.id for record in document.records] == ["kernels"]
    assert "RANDOM weights" in typed("report lenet5 --only kernels --text").out


def test_a_blurred_report_shows_no_image_whole(typed: Type) -> None:
    line = "report lenet5 --data digits --only top_patches,feature_maps --images 4 --blur --json"
    document = Document.from_json(typed(line).out)
    assert document.record("images").method["params"]["blurred"] is True
    assert "feature_maps" not in [record.id for record in document.records]


def test_a_run_is_reported_as_it_was_trained_or_not_at_all(typed: Type) -> None:
    typed("train lenet5 --data digits --epochs 1 -o kept")
    asked = (
        "--blur", "--no-images", "--before kept/initial.safetensors", "--only kernels", "--profile full",
        "--time-budget 9", "--input-size 32", "--preprocess imagenet", "--images 4", "--output 0", "--seed 3",
    )  # fmt: skip
    for option in asked:
        assert f"Received: a run with {option.split()[0]}. Leave that out" in typed(f"report kept {option}").error
    assert "with --profile, --images. Leave" in typed("report kept --images 4 --profile full").error


def test_a_report_with_preprocessing_and_class_names(typed: Type, tmp_path: Path) -> None:
    (tmp_path / "grey.json").write_text(json.dumps({"mean": [0.5], "std": [0.25]}))
    (tmp_path / "names.txt").write_text("\n".join("abcdefghij") + "\n\n")
    line = (
        "report lenet5 --data digits --only feature_maps --images 4 --preprocess grey.json --classes names.txt --json"
    )
    document = Document.from_json(typed(line).out)
    assert document.model["preprocess"] == "grey.json" and document.model["classes"] == list("abcdefghij")
    assert document.data is not None and document.data["n"] == 4
    (tmp_path / "grey.json").write_text(json.dumps({"mean": [0.5], "std": [0]}))
    assert "std above 0" in typed(line).error


def test_bench_prints_a_table_and_keeps_the_run(typed: Type, tmp_path: Path) -> None:
    done = typed(f"bench {SPEC} --rounds 1 -o kept")
    assert done.code == 0 and SPEC in done.out and "x torch" in done.out
    (kept,) = (tmp_path / "kept").glob("*.json")
    assert Document.from_json(kept.read_text(encoding="utf-8")).record("bench").rows[0]["target"] == SPEC


def test_export_writes_what_plan_reads(typed: Type, tmp_path: Path) -> None:
    done = typed("export lenet5 -o net.pt2")
    assert done.code == 0 and "random weights" in done.err
    assert done.out.startswith("wrote net.pt2, ") and "agrees with torch on random input" in done.out
    assert "n1c1o6i28x28k5x5s1p2/bias" in typed("plan net.pt2").out


def test_a_frozen_network_is_planned_as_it_runs_and_has_no_layers_to_look_at(typed: Type) -> None:
    done = typed("export lenet5 -o net.hubel")
    assert done.code == 0 and "agrees with a Session on random input" in done.out
    plan = typed("plan net.hubel")
    assert "a Session of" in plan.err and "n1c1o6i28x28k5x5s1p2/bias" in plan.out and "fused or free" in plan.out
    assert "is planned as it runs here" in typed("plan net.hubel --measure").error
    for line in ("report net.hubel", "check net.hubel", "export net.hubel -o net.onnx"):
        assert "Received: net.hubel, whose layers are fused and frozen" in typed(line).error


def test_doctor_looks_at_everything(typed: Type) -> None:
    done = typed("doctor --no-measure")
    assert done.code == 0
    for name in ("torch", "machine", "instructions", "threads", "thread pool", "executable memory", "kernel cache"):
        assert f"{name} " in done.out
    assert "FMA peak" not in done.out
