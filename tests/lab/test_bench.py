"""`hubel bench` with engines made of torch and a clock wound by hand: what is checked, timed, kept and printed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import jsonschema
import pytest
import torch

from hubel.errors import DataError, UnknownNameError
from hubel.lab import bench, bench_record, conditions, engines, shapes, text_table, timing
from hubel.lab.conditions import Planned
from hubel.lab.engines import Declined, Tensors
from hubel.lab.timing import Contender
from hubel.records import Document, Value, json_schema

SMALL = "n2c3o8i9x9k3p1"
DEPTHWISE = "n1c8o8i9x9k3p1g8"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Idle teams of other tests' threads would only make these slow."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Clock(timing.Meter):
    """Time passes by what a call costs, set in `COST` by the contender's name; no real clock is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def seconds(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        raise AssertionError("engines of one family need no pause")

    def waited(self) -> float:
        return 0.0

    def faults(self) -> int:
        return 0


COST = {
    "ours": 0.001,
    "ours channels-last": 0.002,
    "theirs": 0.004,
    "theirs channels-last": 0.003,
    bench.PEAK: 0.0005,
    bench_record.TRAFFIC: 0.0001,
}


@pytest.fixture
def clock(monkeypatch):
    """Two engines, both torch underneath, and a peak kernel, on a clock of our own."""
    clock, measure = Clock(), timing.measure

    def engine(name: str, break_it=lambda outputs: outputs):
        def made(case, tensors):
            call = engines.torch_call(case, tensors)

            def timed():
                clock.now += COST[name]
                return break_it(call())

            return Contender(name, timed)

        return made

    def tick() -> None:
        clock.now += COST[bench.PEAK]

    def read() -> None:
        clock.now += COST[bench_record.TRAFFIC]

    table = {
        "hubel": {name: engine(name) for name in ("ours", "ours channels-last")},
        "torch": {name: engine(name) for name in ("theirs", "theirs channels-last")},
    }
    monkeypatch.setattr(engines, "ENGINES", table)
    monkeypatch.setattr(timing, "measure", lambda contenders, **options: measure(contenders, meter=clock, **options))
    monkeypatch.setattr(conditions, "peak", lambda threads: conditions.Peak(tick, 1e6))
    monkeypatch.setattr(conditions, "traffic", lambda threads, size: conditions.Peak(read, 4 * size))
    monkeypatch.setattr(conditions, "planned", lambda case, threads: Planned("direct", case.flops))
    return SimpleNamespace(engine=engine, table=table)


def value(cell: object) -> float:
    assert isinstance(cell, Value)
    assert cell.value is not None
    return cell.value


def test_the_ratio_is_of_the_fastest_layouts(clock):
    document = bench.run([SMALL], rounds=15)
    row = document.record("bench").row("n2c3o8i9x9k3x3s1p1")
    assert value(row["x torch"]) == pytest.approx(3.0)
    assert row["x torch"].decided
    assert value(row["ours ms"]) == pytest.approx(1.0)
    assert value(row["theirs channels-last ms"]) == pytest.approx(3.0)
    label = document.record("bench").method["params"]["layers"]["n2c3o8i9x9k3x3s1p1"]
    assert label["fastest"] == {"hubel": "ours", "torch": "theirs channels-last"}
    assert label["kind"] == "small"


def test_rate_and_share_of_the_peak_come_from_the_same_rounds(clock):
    document = bench.run([SMALL], rounds=15)
    row = document.record("bench").rows[0]
    flops = 2 * 2 * 8 * 81 * 27
    assert value(row["rate"]) == pytest.approx(flops / 0.001 / 1e9)
    assert value(row["peak"]) == pytest.approx(1e6 / 0.0005 / 1e9)
    assert value(row["share of peak"]) == pytest.approx((flops / 0.001) / (1e6 / 0.0005))


def test_a_wrong_engine_gets_no_figure(clock):
    clock.table["hubel"]["ours"] = clock.engine("ours", lambda outputs: tuple(out * 1.001 for out in outputs))
    document = bench.run([SMALL], rounds=3)
    record = document.record("bench")
    row = record.rows[0]
    assert "ours ms" not in row
    assert value(row["x torch"]) == pytest.approx(3.0 / 2.0)
    assert row["ours error"] == pytest.approx(1e-3, rel=0.01)
    assert [item["reason"] for item in record.uncovered] == ["ours: wrong: relative error 1.0e-03, allowed 1.8e-06"]


@pytest.mark.parametrize(
    "broken",
    [lambda outputs: (outputs[0][:, :1],), lambda outputs: (outputs[0] * float("nan"),), lambda outputs: ()],
    ids=["shape", "nan", "nothing"],
)
def test_shapes_nan_and_missing_outputs_are_wrong(clock, broken):
    clock.table["torch"]["theirs"] = clock.engine("theirs", broken)
    document = bench.run([SMALL], rounds=3)
    assert "theirs ms" not in document.record("bench").rows[0]
    assert "theirs" in document.record("bench").uncovered[0]["reason"]
    document.to_json()


def test_when_no_engine_is_right_the_row_stays_and_says_why(clock):
    for name in COST.keys() - {bench.PEAK, bench_record.TRAFFIC}:
        library = "hubel" if name.startswith("ours") else "torch"
        clock.table[library][name] = clock.engine(name, lambda outputs: (outputs[0] + 1,))
    document = bench.run([SMALL], rounds=3)
    row = document.record("bench").rows[0]
    assert row["x torch"] is None
    assert row["share of peak"] is None
    assert len(document.record("bench").uncovered) == 4
    assert "wrong" in bench.render_text(document)


def test_an_engine_that_raises_or_declines_is_named(clock):
    def raising(case, tensors):
        def call():
            raise RuntimeError("out of luck\nand a second line")

        return Contender("theirs", call)

    clock.table["torch"]["theirs"] = raising
    clock.table["torch"]["theirs channels-last"] = lambda case, tensors: Declined("no such layout")
    document = bench.run([SMALL], rounds=3)
    reasons = {item["reason"] for item in document.record("bench").uncovered}
    assert reasons == {"theirs: failed: RuntimeError: out of luck", "theirs channels-last: no such layout"}
    assert document.record("bench").rows[0]["x torch"] is None


def test_classes_have_a_mean_and_their_worst_layer(clock, monkeypatch):
    slow = bench.run([SMALL, DEPTHWISE, "n1c8o8i9x9k5p2g8"], rounds=15).record("classes")
    assert [row["target"] for row in slow.rows] == ["forward small", "forward depthwise", "forward all"]
    assert slow.row("forward all")["layers"] == 3
    row = slow.row("forward depthwise")
    assert row["layers"] == 2
    assert row["unsettled"] == 0
    assert value(row["x torch"]) == pytest.approx(3.0)
    # Same time, fewer multiply-adds: the 3x3 layer is the one that is farther from the peak.
    assert slow.method["params"]["worst"]["forward depthwise"]["share of peak"] == "n1c8o8i9x9k3x3s1p1g8"


def test_too_few_clean_rounds_are_marked(clock):
    document = bench.run([SMALL], rounds=3)
    assert document.record("classes").rows[0]["unsettled"] == 1


def test_backward_times_each_gradient_and_both(clock):
    document = bench.run([SMALL], backward=True, rounds=3)
    rows = document.record("bench").rows
    assert [row["target"].rpartition("/")[2] for row in rows] == ["weight_gradient", "input_gradient", "backward"]
    assert value(rows[2]["rate"]) == pytest.approx(2 * value(rows[0]["rate"]))
    assert {row["target"] for row in document.record("classes").rows} == {
        "weight_gradient small",
        "input_gradient small",
        "backward small",
    }


def test_an_interrupted_run_keeps_its_layers(clock):
    def stop(done: int, total: int, what: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    before = torch.get_num_threads()
    document = bench.run([SMALL, DEPTHWISE], rounds=3, threads=2, progress=stop)
    assert document.status == "interrupted"
    assert len(document.record("bench").rows) == 1
    assert torch.get_num_threads() == before


def test_progress_counts_the_cases(clock):
    seen: list[tuple[int, int, str]] = []
    bench.run([SMALL, DEPTHWISE], rounds=3, progress=lambda *what: seen.append(what))
    assert [(done, total) for done, total, _ in seen] == [(0, 2), (1, 2), (2, 2)]
    assert seen[0][2] == f"{SMALL} (forward)"


def test_unknown_engines_and_silly_rounds_are_refused(clock):
    with pytest.raises(UnknownNameError, match='unknown engine "torhc".*"torch"'):
        bench.run([SMALL], against=["torhc"])
    with pytest.raises(DataError, match="rounds must be at least 1"):
        bench.run([SMALL], rounds=0)


def test_the_document_follows_the_schema_and_comes_back(clock, tmp_path):
    document = bench.run([SMALL, DEPTHWISE], rounds=3)
    jsonschema.validate(json.loads(document.to_json()), json_schema())
    path = bench.save(document, tmp_path)
    again = Document.from_json(path.read_text())
    assert bench.render_text(again) == bench.render_text(document) == path.with_suffix(".txt").read_text()


def test_saved_runs_are_never_replaced(clock, tmp_path):
    document = bench.run([SMALL], rounds=3)
    first, second = bench.save(document, tmp_path), bench.save(document, tmp_path)
    assert first != second
    assert len(list(tmp_path.iterdir())) == 4


def test_the_table_of_a_recorded_run(clock):
    document = bench.run([SMALL, DEPTHWISE], rounds=15, threads=1)
    document.created, document.versions = "2026-03-01T12:00:00Z", {"hubel": "0.1.0", "torch": "2.13.0"}
    document.machine = {"name": "Some CPU", "cores": 2, "cpu": "haswell", "lanes": 8, "load": [0.1], "stolen": 0.0}
    text = bench.render_text(document)
    assert text.splitlines()[:4] == [
        f"bench: {SMALL}, {DEPTHWISE}   2026-03-01T12:00:00Z   complete",
        "Some CPU, 2 cores, haswell (8 lanes); load 0.1, 0.0% taken by other guests",
        "threads 1, accuracy default, seed 0",
        "hubel 0.1.0, torch 2.13.0",
    ]
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert lines["layer"].split()[:3] == ["layer", "problem", "algorithm"]
    cells = lines[DEPTHWISE].split()
    assert cells[2:9] == ["direct", "1", "2", "4", "3", "3.00", "3.00..3.00"]
    assert cells[-1] == "15/15"


def test_columns_are_as_wide_as_their_cells():
    text = text_table.table(["name", "ms"], [["a", "1"], ["long name", "22.50"]])
    assert text.splitlines() == ["name          ms", "---------  -----", "a              1", "long name  22.50"]


# The real engines: right answers in every direction and layout, nothing timed.
@pytest.mark.parametrize("text", [SMALL, DEPTHWISE, "n2c4o6i8k3p1/bias", "c2o4i5x5x5k3", "n3c4o8i7x6k3s2p1g2/bias"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("library", ["torch", "hubel"])
def test_engines_pass_their_own_check(text, backward, library):
    for case in shapes.resolve([text], backward=backward):
        tensors = Tensors.of(case)
        with torch.no_grad():
            reference = engines.float64(case, tensors)
            found, declined = engines.contenders(case, [library], tensors)
            checked = [engines.check(c, case, reference, engines.error_bound(case, "default", library)) for c in found]
        assert [result.reason for result in checked] == [None] * len(found)
        assert len(found) == (1 if case.spec.ndim == 1 else 2)
        assert len(declined) == 2 - len(found)


def test_float64_of_a_batch_is_torchs_own():
    case = shapes.resolve(["n3c4o6i7x7k3p1/weight_gradient/bias"])[0]
    tensors = Tensors.of(case)
    x, w, dy = (t.detach().double() for t in (tensors.x, tensors.w, tensors.dy))
    _, dw, db = torch.ops.aten.convolution_backward(
        dy, x, w, [6], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, True]
    )
    ours = engines.float64(case, tensors)
    assert torch.allclose(ours[0], dw)
    assert torch.allclose(ours[1], db)


def test_gradient_calls_find_changed_weights_and_forward_calls_do_not():
    forward, backward = shapes.resolve([SMALL, f"{SMALL}/input_gradient"])
    for case, bumped in ((forward, 0), (backward, 1)):
        tensors = Tensors.of(case)
        call, version = engines.torch_call(case, tensors), tensors.w._version
        with torch.no_grad():
            call()
        assert tensors.w._version == version + bumped


def test_channels_last_lays_out_weights_and_data():
    case = shapes.resolve([DEPTHWISE])[0]
    tensors = Tensors.of(case).to(torch.channels_last)
    assert tensors.x.is_contiguous(memory_format=torch.channels_last)
    assert isinstance(tensors.w, torch.nn.Parameter)
    assert torch.equal(tensors.x, Tensors.of(case).x)


def test_a_call_handed_back_is_not_native():
    case = shapes.resolve([SMALL])[0]
    tensors = Tensors.of(case)

    @contextmanager
    def handing_back():
        yield SimpleNamespace(fallback=1)

    with torch.no_grad():
        found = engines.check(
            Contender("a", engines.torch_call(case, tensors), handing_back), case, engines.float64(case, tensors), 1e-5
        )
    assert found.native is False
    assert found.reason is None


def test_peak_counts_its_own_operations():
    one, two = conditions.peak(1), conditions.peak(2)
    if one is None or two is None:
        pytest.skip("no generated code runs on this machine")
    assert two.flops == 2 * one.flops > 1e6
    one.call()


def test_error_bounds_are_hubels_promise():
    case = shapes.resolve(["n1c256o64i14x14k3p1"])[0]
    assert engines.error_bound(case, "default", "hubel") == pytest.approx(6 * 3e-7)
    assert engines.error_bound(case, "strict", "hubel") == pytest.approx(2 * 3e-7)
    assert engines.error_bound(case, "strict", "torch") == 1e-5
    both = shapes.resolve(["n16c8o8i100x100k3p1"], backward=True)[2]
    assert engines.error_bound(both, "default", "hubel") == pytest.approx(6 * 3e-7 * (160000 / 2304) ** 0.5)
