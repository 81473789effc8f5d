"""Engines for inference as contenders: driven rightly where they are installed, and said to be missing where not."""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hubel.errors import DataError, UnknownNameError
from hubel.lab import bench_record, bench_tables, bounds, engines, held, kept, shapes, timing
from hubel.lab.bench_record import Layer, Taken
from hubel.lab.conditions import Planned
from hubel.lab.engines import PEERS, PREPARED, Checked, Tensors, door
from hubel.lab.engines.ncnn import network
from hubel.lab.timing import Rounds, Sample

MODULES = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "xnnpack": "ai_edge_litert",
    "ncnn": "ncnn",
    "mnn": "MNN",
}

# A problem of each kind, small: bias, batch, stride, stem, 1x1, depthwise, grouped, dilated, one row, 1-D, 3-D,
# transposed with and without padding.
KINDS = """c8o16i12x14k3p1/bias  n2c8o16i12x14k3p1  c8o16i13x14k3s2p1  c3o16i33x32k7s2p3  c8o16i12x14k1
    c8o8i12x14k5s2p2g8/bias  c8o16i12x14k3p1g4  c8o16i12x14k3p2d2  c8o16i12x14k1x7p0x3  c8o16i33k5s2p2/bias
    c4o8i5x6x7k3p1  c8o16i8x8k4s2p1/transposed/bias  c8o16i12x12k2s2/transposed  c8o16i12x12k3s2p1/transposed
    c8o16i12x12k4s2p1g4/transposed""".split()


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("library", [PREPARED, *PEERS])
def test_a_peer_computes_every_kind_of_layer_or_says_why_not(library):
    needed = {MODULES[library], "onnx"} if library in ("onnxruntime", "mnn") else {MODULES.get(library, "torch")}
    if any(importlib.util.find_spec(module) is None for module in needed):
        pytest.skip(f"not installed: {' or '.join(sorted(needed))}")
    # Once OpenVINO has run in a process that torch's own tests have gone through, Python ends with a segmentation fault
    # some tests later: it gets a process of its own.
    if library == "openvino":
        code = (
            f"import torch; torch.set_num_threads(1); from tests.lab.test_peers import computes; computes({library!r})"
        )
        paths = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
        environment = {**os.environ, "PYTHONPATH": paths}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
    else:
        computes(library)


def computes(library: str) -> None:
    """Every kind of layer, or a reason why not, and no failure."""
    done = 0
    for text in KINDS:
        (case,) = shapes.resolve([text])
        tensors = Tensors.of(case)
        found, declined = engines.contenders(case, [library], tensors)
        assert all("failed" not in reason for reason in declined.values()), (text, declined)
        with torch.no_grad():
            reference = engines.float64(case, tensors)
            for contender in found:
                done += 1
                result = engines.check(contender, case, reference, engines.error_bound(case, "default", library))
                assert result.reason is None, (text, contender.name)
                if contender.layer_share is not None:
                    assert 0 < contender.layer_share() <= 1, (text, contender.name)
    assert done >= 10


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_that_is_not_installed_is_said_to_be(name, monkeypatch):
    def missing(module: str) -> None:
        raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr(door.importlib, "import_module", missing)
    (case,) = shapes.resolve(["c8o16i12x14k3p1"])
    found, declined = engines.contenders(case, [name], Tensors.of(case))
    assert found == []
    for reason in declined.values():
        assert "is not installed" in reason and "pip install 'hubel[bench]'" in reason


def test_peers_do_not_train():
    (case,) = shapes.resolve(["c8o16i12x14k3p1/weight_gradient"])
    _, declined = engines.contenders(case, list(PEERS), Tensors.of(case))
    assert set(declined.values()) == {"it does not train: no gradients"}


def test_other_dtypes_are_compared_with_torchs_and_with_hubels_own_float32():
    (case,) = shapes.resolve(["c8o16i12x14k3p1"], dtype="bfloat16")
    tensors = Tensors.of(case)
    assert tensors.x.dtype is torch.bfloat16
    names = engines.libraries(["all"], ["bfloat16"])
    assert names[:3] == ["hubel", "torch", engines.FLOAT32]
    found, declined = engines.contenders(case, names, tensors)
    assert {declined[peer] for peer in PEERS} == {"asked for float32 only"}
    with torch.no_grad():
        reference = engines.float64(case, tensors)
        for contender in found:
            library = next(name for name in names if contender.name in engines.ENGINES[name])
            result = engines.check(contender, case, reference, engines.error_bound(case, "default", library))
            assert result.reason is None, contender.name
            assert (result.error < 1e-6) == (library == engines.FLOAT32)
    assert len(found) == 8


def test_a_class_may_be_all_layers_that_one_thing_limits():
    wanted = bounds.ClassBounds("narrow", ("forward bfloat16",), {engines.FLOAT32: (0.8, None)}, limit="memory")
    layer = taken("c64o64i56x56k3p1/bfloat16", {"hubel": 1.0, engines.FLOAT32: 1.5}, flops=1e9)
    assert layer.limit() == "memory"
    result = Taken(["hubel", "torch", engines.FLOAT32], [layer])
    (row,) = bounds.record(bench_record.layers(result, 15), bounds.Bounds(0.92, 0.8, 0.9, (wanted,))).rows
    assert row[f"x {engines.FLOAT32}"] == pytest.approx(1.5)
    arithmetic = bounds.ClassBounds("other", ("forward bfloat16",), {}, limit="arithmetic")
    assert bounds.record(bench_record.layers(result, 15), bounds.Bounds(0.92, 0.8, 0.9, (arithmetic,))).rows == []


def test_who_takes_part():
    assert engines.libraries(["torch"]) == ["hubel", "torch"]
    assert engines.libraries(["ncnn"]) == [PREPARED, "ncnn"]
    assert engines.libraries(["all"]) == ["hubel", "torch", PREPARED, *PEERS]
    with pytest.raises(UnknownNameError, match='unknown engine "opnvino".*"openvino"'):
        engines.libraries(["opnvino"])


def test_what_a_library_prints_past_python_is_not_seen(capfd):
    with door.quiet():
        ctypes.CDLL(None).puts(b"noise")
        ctypes.CDLL(None).fflush(None)
    assert capfd.readouterr().out == ""


def test_ncnns_parameters_run_from_the_innermost_axis():
    (case,) = shapes.resolve(["c8o16i12x14k1x7s2x1p0x3/bias"])
    line = network(case).splitlines()[3]
    assert line == "Convolution layer 1 1 x y 0=16 1=7 2=1 3=1 4=3 5=1 6=896 11=1 12=1 13=2 14=0"


def test_large_outputs_run_once_more_in_a_process_that_keeps_its_memory():
    small, large, gradient = shapes.resolve(["c8o16i12x14k3p1", "n16c1o64i96x96k1", "n16c1o64i96x96k1/weight_gradient"])
    assert [kept.matters(case) for case in (small, large, gradient)] == [False, True, False]
    rounds = kept.measure(large, ["hubel", "torch"], threads=1, rounds=1, seed=0)
    assert rounds is not None
    assert set(rounds.samples) >= {"hubel", "hubel channels-last", "torch", "torch channels-last"}
    # 36 MB are 9216 pages; the calls before the timed ones have touched them.
    assert min(sample.faults for sample in rounds.samples["torch"]) < 100
    layer = taken(large.target, TIMES)
    layer.kept = rounds
    record = bench_record.layers(Taken(["hubel", "torch"], [layer]), 15)
    (row,) = record.rows
    assert row["torch, pages kept ms"].value > 0 and row["x torch, pages kept"].value > 0
    ((_, against), (title, table)) = bench_tables.of(record.rows, record.method["params"])
    assert "above 32 MB" in title and "torch kept ms" in table and "kept" not in against


def test_a_process_that_fails_leaves_no_figure(monkeypatch):
    monkeypatch.setattr(kept.sys, "executable", "/bin/false")
    (large,) = shapes.resolve(["n16c1o64i96x96k1"])
    assert kept.measure(large, ["hubel", "torch"], threads=1, rounds=1, seed=0) is None


# A run put together by hand: `ms` of every contender, the same in each of 15 rounds.
def taken(text: str, ms: dict[str, float], imprecise: str = "", flops: float = 1e6) -> Layer:
    (case,) = shapes.resolve([text])
    samples = {name: [Sample(value / 1e3)] * 15 for name, value in ms.items()}
    samples |= {bench_record.PEAK: [Sample(1e-3)] * 15, bench_record.TRAFFIC: [Sample(1e-3)] * 15}
    checked = {name: Checked(1e-4 if name == imprecise else 1e-7, counts=name != imprecise) for name in ms}
    rounds = Rounds(samples, [list(samples)] * 15)
    return Layer(case, checked, rounds, {}, Planned("direct", 10**6), flops, case.spec.bytes() * 10)


TIMES = {"hubel": 2.0, "torch": 4.0, "torch channels-last": 3.0, PREPARED: 1.0, "openvino": 2.5, "mnn": 1.5}


def values(row: dict, *names: str) -> list[float]:
    return [row[name].value if hasattr(row[name], "value") else row[name] for name in names]


def test_each_rival_is_compared_with_the_like_of_its_own_door():
    result = Taken(["hubel", "torch", PREPARED, "openvino", "mnn"], [taken("c64o64i56x56k3p1", TIMES)])
    (row,) = bench_record.layers(result, 15).rows
    assert values(row, "x torch", "x openvino", "x mnn", "x peers") == pytest.approx([1.5, 2.5, 1.5, 1.5])
    # The peak kernel does a million operations in 1 ms, and so many has the layer: half of hubel's 2 ms.
    assert values(row, "hubel share of roof", f"{PREPARED} share of roof") == pytest.approx([0.5, 1.0])


def test_an_imprecise_peer_is_shown_and_is_not_the_best():
    result = Taken(["hubel", "torch", PREPARED, "openvino", "mnn"], [taken("c64o64i56x56k3p1", TIMES, "mnn")])
    record = bench_record.layers(result, 15)
    (row,) = record.rows
    assert row["x mnn"] is None and values(row, "x peers") == [2.5]
    label = record.method["params"]["layers"]["n1c64o64i56x56k3x3s1p1"]
    assert (label["best peer"], label["imprecise"]) == ("openvino", ["mnn"])
    text = "\n".join(text for _, text in bench_tables.of(record.rows, record.method["params"]))
    assert "1.5!" in text and "2.50" in text and "1.0e-04" in text


def test_what_peers_spend_on_conversions_is_left_aside_and_shown():
    layer = taken("c64o64i56x56k3p1", TIMES)
    # mnn: 1.5 ms, of which 1.2 are the layer's own; openvino, 2.5 ms, is slower still, but takes only 1 ms for that.
    layer.layer_shares = {"mnn": 0.8, "openvino": 0.4}
    record = bench_record.layers(Taken(["hubel", "torch", PREPARED, "openvino", "mnn"], [layer]), 15)
    assert values(record.rows[0], "x peers", "x peers, conversions aside") == pytest.approx([1.5, 1.0])
    text = "\n".join(text for _, text in bench_tables.of(record.rows, record.method["params"]))
    assert "aside" in text


def test_a_share_is_of_times_taken_in_turns():
    def slow() -> None:
        sum(range(20_000))

    assert timing.time_share(lambda: None, slow, rounds=5) < 0.5
    assert timing.time_share(slow, lambda: None, rounds=5) == 1.0


def test_both_gradients_move_their_bytes_twice():
    layer = taken("c64o64i56x56k3p1", TIMES, flops=1e12)
    both = taken("c64o64i56x56k3p1", TIMES, flops=1e12)
    both.case = shapes.resolve(["c64o64i56x56k3p1"], backward=True)[2]
    assert layer.roof_shares("hubel")[0] == pytest.approx(0.1e-3 / 2e-3)
    assert both.roof_shares("hubel")[0] == pytest.approx(0.2e-3 / 2e-3)


def test_disturbed_rounds_say_nothing_of_the_roof():
    layer = taken("c64o64i56x56k3p1", TIMES)
    layer.taken.samples[bench_record.TRAFFIC] = [Sample(1e-3, waited=0.5)] * 15
    assert layer.roof_shares("hubel") == []


BOUNDS = bounds.Bounds(
    0.92,
    0.8,
    0.9,
    (bounds.ClassBounds("dense", ("forward 3x3",), {"torch": (2.0, 1.6), "peers": (1.2, None)}),),
)


def judged(*layers: Layer):
    result = Taken(["hubel", "torch", PREPARED, "openvino", "mnn"], list(layers))
    return bounds.record(bench_record.layers(result, 15), BOUNDS)


def test_a_class_is_held_to_its_bounds():
    record = judged(taken("c64o64i56x56k3p1", TIMES), taken("c128o64i56x56k3p1", TIMES | {"hubel": 1.5}))
    (row,) = record.rows
    # Ratios to torch 1.5 and 2; at 92 % of the roof they would be 1.5 x 0.92 / 0.5 and 2 x 0.92 / 0.667, which is more.
    assert row["x torch"] == pytest.approx(math.sqrt(3))
    assert (row["x torch, bound"], row["x torch, met"]) == (2.0, 0)
    assert (row["worst x torch"], row["worst x torch, bound"], row["worst x torch, met"]) == (1.5, 1.6, 0)
    assert record.method["params"]["words"]["dense"]["x torch, worst"] == "n1c64o64i56x56k3x3s1p1"
    # The prepared call has reached the roof: its bound is 92 % of what it has.
    assert (row["x peers"], row["x peers, bound"], row["x peers, met"]) == pytest.approx((1.5, 1.2, 1))
    assert "worst x peers, met" not in row


def test_a_bound_beyond_the_roof_is_replaced_by_the_roof():
    layer = taken("c64o64i56x56k3p1", {"hubel": 1.0, "torch": 1.5})
    (row,) = judged(layer).rows
    assert (row["x torch, bound"], row["x torch, met"]) == (pytest.approx(1.5 * 0.92), 1)
    assert row["worst x torch, bound"] == pytest.approx(1.5 * 0.92)
    text = bench_tables.bounds(judged(layer), {layer.case.target: {"name": "one"}})
    assert "1.38*" in text and "none" in text


def test_bounds_of_batch_16_are_scaled_and_of_others_unsaid():
    (row,) = judged(taken("n16c64o64i56x56k3p1", TIMES)).rows
    assert row["x torch, bound"] == pytest.approx(1.6)
    assert judged(taken("n4c64o64i56x56k3p1", TIMES)).rows == []


def test_layers_slower_than_torch_in_the_callers_layout_are_named():
    record = judged(taken("c64o64i56x56k3p1", {"hubel": 5.0, "hubel channels-last": 1.0} | {"torch": 4.0}))
    assert [(one["layout"], one["ratio"]) for one in record.method["params"]["slow"]] == [("same NCHW", 0.8)]


def test_the_shipped_bounds_name_classes_that_exist():
    read = bounds.load(bounds.shipped())
    folder = bounds.shipped().parent / "shapes"
    kinds = {case.kind for path in folder.glob("*.txt") for case in shapes.parse(path.read_text())}
    named = {row.split(" ", 1)[1] for one in read.classes for row in one.rows}
    assert named - kinds == {"bfloat16"}
    assert kinds - named == {"depthwise large"}
    assert len(read.classes) == 18


def test_files_that_hold_no_bounds(tmp_path, monkeypatch):
    (tmp_path / "bad.toml").write_text("roof = 0.9\n")
    with pytest.raises(DataError, match="like benchmarks/targets.toml"):
        bounds.load(tmp_path / "bad.toml")
    monkeypatch.setattr(bounds, "__file__", str(tmp_path / "a" / "b" / "c" / "d.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="here or in a checkout"):
        bounds.shipped()


def test_the_heading_names_what_is_held(monkeypatch):
    monkeypatch.setattr(held, "current", held.Held("avx2", True))
    from hubel.lab import conditions

    assert "held to avx2" in conditions.Watch().machine(1)["held"]
    assert SimpleNamespace(**conditions.Watch().machine(1)).threads == 1
