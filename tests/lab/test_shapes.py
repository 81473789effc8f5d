"""Shape lists, the classes layers fall into, and what the targets of `hubel bench` resolve to."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubel.engine.problem import Direction, Problem
from hubel.engine.spec import ConvSpec
from hubel.errors import DataError, SpecError, UnknownNameError
from hubel.lab import shapes
from hubel.lab.shapes import Case

SHIPPED = Path(__file__).resolve().parents[2] / "benchmarks" / "shapes"


def test_a_list_has_a_problem_and_a_name_a_line():
    text = "# ResNet\n\nn1c64o64i56x56k3x3s1p1   resnet 3x3 64@56  # a comment\nc3o8i9x9k3\n"
    assert shapes.parse(text) == [
        Case(Problem(ConvSpec(1, 64, 64, (56, 56), 3, padding=1)), "resnet 3x3 64@56"),
        Case(Problem(ConvSpec(1, 3, 8, (9, 9), 3)), "c3o8i9x9k3"),
    ]


def test_a_bad_line_is_named():
    with pytest.raises(DataError, match=r"my list, line 2: .*names no convolution"):
        shapes.parse("c3o8i9x9k3\nresnet c3o8i9x9k3", "my list")


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.txt")), ids=lambda path: path.stem)
def test_shipped_lists_parse_and_repeat_nothing(path):
    layers = shapes.parse(path.read_text(), path.name)
    assert layers
    targets = [case.target for case in layers]
    assert len(set(targets)) == len(targets)
    assert all(case.name != case.target for case in layers)


def test_the_lists_that_claims_are_made_about_hold_what_they_say():
    kinds = {path.stem: {case.kind for case in shapes.parse(path.read_text())} for path in SHIPPED.glob("*")}
    assert kinds["dense3x3"] == {"3x3"}
    assert kinds["pointwise"] == {"1x1"}
    assert kinds["depthwise"] == {"depthwise"}
    assert kinds["weight_gradient"] == {"3x3", "1x1"}
    assert kinds["lenet"] == kinds["small"] == {"small"}
    assert kinds["strided"] == kinds["stems"] == {"strided and stems"}
    assert kinds["dense_other"] == {"5x5, 1x7, 7x1, 1x3"}
    assert kinds["grouped"] == {"grouped"}
    assert kinds["conv1d"] == {"conv1d"}
    assert kinds["conv3d"] == {"conv3d"}
    assert kinds["transposed"] == {"transposed"}
    assert kinds["depthwise_large"] == {"depthwise 31x31", "depthwise large"}
    weights = shapes.parse((SHIPPED / "weight_gradient.txt").read_text())
    assert {(case.problem.direction, case.spec.batch) for case in weights} == {(Direction.WEIGHT_GRADIENT, 16)}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("c64o64i56x56k3p1", "3x3"),
        ("c32o64i56x56k3p1", "3x3 narrow"),
        ("c64o128i56x56k3s2p1", "strided and stems"),
        ("c256o64i56x56k1", "1x1"),
        ("c24o144i56x56k1", "1x1"),
        ("c256o512i56x56k1s2", "strided and stems"),
        ("c32o64i8x8k1", "small"),
        ("c96o96i56x56k7p3g96", "depthwise"),
        ("c96o192i56x56k3p1g96", "depthwise"),
        ("c128o128i56x56k31p15g128", "depthwise 31x31"),
        ("c768o768i32x32k9p4g768", "depthwise large"),
        ("c128o128i56x56k3p1g32", "grouped"),
        ("c3o64i224x224k7s2p3", "strided and stems"),
        ("c64o96i35x35k5p2", "5x5, 1x7, 7x1, 1x3"),
        ("c128o128i17x17k1x7p0x3", "5x5, 1x7, 7x1, 1x3"),
        ("c6o16i14x14k5", "small"),
        ("n64c6o16i14x14k5", "small"),
        ("c1o64i16000k9", "conv1d"),
        ("c64o64i8x28x28k3p1", "conv3d"),
        ("c1o1i4x4k3", "small"),
    ],
)
def test_kinds(text, kind):
    assert shapes.kind(ConvSpec.parse(text)) == kind


def test_nothing_asked_for_gives_the_quick_list():
    assert len(shapes.resolve([])) == len(shapes.parse(shapes.QUICK))


def test_a_problem_a_file_a_list_and_a_network(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("c3o8i9x9k3 first\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "benchmarks" / "shapes").mkdir(parents=True)
    (tmp_path / "benchmarks" / "shapes" / "ours.txt").write_text("c5o8i9x9k3 second\n")
    cases = shapes.resolve(["c4o8i9x9k3", "mine.txt", "ours", "lenet5"])
    assert [case.spec.in_channels for case in cases] == [4, 3, 5, 1, 6]
    assert [case.name for case in cases][1:] == ["first", "second", "lenet5 conv 1", "lenet5 conv 2"]
    assert cases[3].problem == Problem(ConvSpec(1, 1, 6, (28, 28), 5, padding=2), bias=True)
    assert cases[4].spec == ConvSpec(1, 6, 16, (14, 14), 5)


def test_a_problem_named_twice_runs_once_under_both_names(tmp_path):
    (tmp_path / "twice.txt").write_text("c3o8i9x9k3 first\nn1c3o8i9x9k3x3s1 second\nc3o8i9x9k3 first\n")
    (case,) = shapes.resolve([str(tmp_path / "twice.txt")])
    assert case.name == "first, second"


def test_backward_asks_for_each_gradient_and_both():
    cases = shapes.resolve(["c3o8i9x9k3/bias", "c4o8i9x9k3/input_gradient"], backward=True)
    assert [case.target for case in cases] == [
        "n1c3o8i9x9k3x3s1p0/weight_gradient",
        "n1c3o8i9x9k3x3s1p0/input_gradient",
        "n1c3o8i9x9k3x3s1p0/backward",
        "n1c4o8i9x9k3x3s1p0/input_gradient",
    ]
    assert cases[2].flops == 2 * cases[0].flops == 2 * cases[0].spec.flops
    assert [case.work for case in cases[:3]] == ["weight_gradient", "input_gradient", "backward"]


def test_batch_replaces_every_batch():
    cases = shapes.resolve(["n2c3o8i9x9k3", "c4o8i9x9k3/weight_gradient"], batch=16)
    assert [case.spec.batch for case in cases] == [16, 16]


def test_unknown_names_offer_near_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownNameError, match='"lenet6".*"lenet5"'):
        shapes.resolve(["lenet6"])
    with pytest.raises(SpecError, match="names no convolution"):
        shapes.resolve(["n1c3o8"])
    with pytest.raises(SpecError, match="batch must be at least 0"):
        shapes.resolve(["c3o8i9x9k3"], batch=-1)


def test_files_that_are_no_lists(tmp_path):
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="holds none"):
        shapes.resolve([str(tmp_path / "empty.txt")])
    with pytest.raises(DataError, match="is a text file"):
        shapes.resolve([str(tmp_path / "binary.txt")])


def test_a_transposed_convolution_is_written_as_the_convolution_whose_input_gradient_it_is():
    case = shapes.case_of("c64o128i29x28k3s2x1p1/transposed/bias", "up")
    assert case.problem == Problem(ConvSpec.parse("c64o128i29x28k3s2x1p1"), Direction.INPUT_GRADIENT, bias=True)
    assert (case.input_shape, case.output_shape) == ((1, 128, 15, 28), (1, 64, 29, 28))
    assert case.output_padding == (0, 0)
    assert shapes.case_of("c3o8i8x9k3s2p1/transposed").output_padding == (1, 0)
    assert (case.kind, case.work, case.target) == (
        "transposed", "forward", "n1c64o128i29x28k3x3s2x1p1/transposed/bias",
    )  # fmt: skip
    assert shapes.resolve([case.target])[0].problem == case.problem
    assert shapes.resolve([case.target], batch=2, backward=True)[0].input_shape == (2, 128, 15, 28)
    with pytest.raises(SpecError, match="one direction.*weight_gradient.*Leave out"):
        shapes.case_of("c3o8i9x9k3/transposed/weight_gradient")


def test_a_generators_layers_are_transposed_ones():
    targets = [case.target for case in shapes.convolutions("dcgan_generator")]
    assert targets == [
        "n1c512o100i4x4k4x4s1p0/transposed",
        "n1c256o512i8x8k4x4s2p1/transposed",
        "n1c128o256i16x16k4x4s2p1/transposed",
        "n1c64o128i32x32k4x4s2p1/transposed",
        "n1c3o64i64x64k4x4s2p1/transposed",
    ]
    assert [case.target for case in shapes.resolve(["dcgan_generator"])] == targets


@pytest.mark.parametrize("text", ["c3o8i9x9k3/bias", "c3o8i9x9k3s2p1/transposed/bias", "c3o8i9x9k3/weight_gradient"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_targets_come_back(text, dtype):
    for case in shapes.resolve([text], backward=True, dtype=dtype):
        again = shapes.case_of(case.target, case.name)
        assert again == case
        assert case.work.endswith("bfloat16") == (dtype is not None)
