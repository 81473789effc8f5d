"""Times whole networks: hubel.Session beside torch, ONNX Runtime and OpenVINO, each as its users drive it.

    python benchmarks/networks.py resnet18 mobilenet_v2 [--threads 2] [--batch 1] [--rounds 15] [-o benchmarks/results]

The same weights everywhere (random, batch norms with statistics as after training), float32. Every engine's answer is
held against float64 before it is timed. In every round each engine runs once, in an order drawn anew, with a pause in
which the threads of the one before stop spinning; ratios are medians of ratios within rounds. torch: eager, both
memory formats. ONNX Runtime: the exported network, all optimisations, tensors bound beforehand. OpenVINO: the same
file, latency hint, one stream, shared tensors.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hubel
from hubel.engine.machine import Machine
from hubel.lab.conditions import describe_machine

NETWORKS = ("lenet5", "alexnet", "vgg16", "resnet18", "resnet50", "inception_v3", "mobilenet_v1", "mobilenet_v2")
# ONNX Runtime's threads spin so long after a call.
PAUSE = 0.06
# More than this share of the answer is no answer.
WRONG = 1e-4


def prepared(name: str) -> nn.Module:
    """The network with random weights and statistics that batch norms could have, in evaluation mode."""
    net = hubel.zoo.build(name, seed=0).eval()
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    return net


def engines(net: nn.Module, x: Tensor, threads: int) -> dict[str, tuple[Callable[[], Any], Callable[[Any], Tensor]]]:
    """For each engine what runs it, and what makes a tensor of its answer."""
    session = hubel.Session(net, x)
    last, x_last = copy.deepcopy(net).to(memory_format=torch.channels_last), x  # type: ignore[call-overload]
    x_last = x.to(memory_format=torch.channels_last)
    found: dict[str, Any] = {
        "hubel.Session": (lambda: session(x), lambda y: y),
        "torch": (lambda: net(x), lambda y: y),
        "torch channels-last": (lambda: last(x_last), lambda y: y),
    }
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "net.onnx"
        torch.onnx.export(net, (x,), str(path), dynamo=True, external_data=False, verbose=False)
        found["onnxruntime"] = _onnxruntime(path, x, threads)
        found["openvino"] = _openvino(path, x, threads)
    return found


def _onnxruntime(path: Path, x: Tensor, threads: int) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_ortvalue_input(session.get_inputs()[0].name, ort.OrtValue.ortvalue_from_numpy(x.numpy()))
    binding.bind_output(session.get_outputs()[0].name)

    def run() -> Any:
        session.run_with_iobinding(binding)
        return binding

    return run, lambda b: torch.from_numpy(b.copy_outputs_to_cpu()[0])


def _openvino(path: Path, x: Tensor, threads: int) -> Any:
    import openvino as ov

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    request = ov.Core().compile_model(ov.convert_model(path), "CPU", settings).create_infer_request()
    given = np.ascontiguousarray(x.numpy())
    request.set_input_tensor(ov.Tensor(given, shared_memory=True))

    def run() -> Any:
        request.infer()
        return given

    return run, lambda _: torch.from_numpy(request.get_output_tensor().data.copy())


def timed(contenders: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Seconds of every engine in every round."""
    shuffle, seconds = random.Random(0), {name: [] for name in contenders}
    repeats = {}
    for name, (run, _) in contenders.items():
        run()
        start = time.perf_counter()
        run()
        # Short networks several times a sample.
        repeats[name] = max(1, min(200, int(0.02 / (time.perf_counter() - start))))
    for _ in range(rounds):
        for name in shuffle.sample(list(contenders), len(contenders)):
            run = contenders[name][0]
            time.sleep(PAUSE)
            run()
            start = time.perf_counter()
            for _ in range(repeats[name]):
                run()
            seconds[name].append((time.perf_counter() - start) / repeats[name])
    return seconds


def measured(name: str, threads: int, batch: int, rounds: int) -> dict[str, Any]:
    """One network's row."""
    net, shape = prepared(name), hubel.zoo.describe(name).input
    x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1))
    contenders = engines(net, x, threads)
    exact = copy.deepcopy(net).double()(x.double())
    errors = {}
    for engine, (run, read) in contenders.items():
        y = read(run())
        errors[engine] = ((y.double() - exact).norm() / exact.norm()).item()
    contenders = {engine: c for engine, c in contenders.items() if errors[engine] <= WRONG}
    seconds = timed(contenders, rounds)
    return {"network": name, "batch": batch, "threads": threads, "error": errors, "seconds": seconds}


def table(rows: list[dict[str, Any]]) -> str:
    """Medians in ms, errors, and the Session against the best of the others, in each round."""
    names = list(rows[0]["error"])
    lines = ["network            " + "".join(f"{n:>21}" for n in names) + "   best / Session  torch / Session"]
    for row in rows:
        seconds = row["seconds"]
        cells = [
            f"{1e3 * statistics.median(seconds[n]):8.3f} ({row['error'][n]:.0e})" if n in seconds else "wrong"
            for n in names
        ]
        ours = seconds["hubel.Session"]
        engines = [n for n in ("onnxruntime", "openvino") if n in seconds]
        best = min(engines, key=lambda n: statistics.median(seconds[n]))
        eager = min(("torch", "torch channels-last"), key=lambda n: statistics.median(seconds[n]))
        ratios = [statistics.median(a / b for a, b in zip(seconds[n], ours, strict=True)) for n in (best, eager)]
        lines.append(
            f"{row['network']:19}" + "".join(f"{c:>21}" for c in cells) + "".join(f"{r:17.2f}" for r in ratios)
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("-o", "--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    with torch.no_grad():
        for name in given.networks:
            rows.append(measured(name, given.threads, given.batch, given.rounds))
            print(table(rows[-1:]), flush=True)
    text = f"{Machine.detect().name}, {given.threads} threads, batch {given.batch}: ms, median of {given.rounds} rounds"
    text = f"{text} (error against float64)\n{table(rows)}\n"
    print(text)
    if given.out:
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
        base = given.out / f"{stamp}-networks-b{given.batch}-{given.threads}t"
        base.with_suffix(".txt").write_text(text)
        base.with_suffix(".json").write_text(json.dumps({"machine": describe_machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
