"""`networks.py --memory` and `--first`: what can only be told of a process from its beginning. A ResNet-50, batch 1.

memory: how far the peak RSS grows over the interpreter with the library and the input loaded, while a network of a file
is loaded and run: a `.hubel` by Session.load (both settings of `memory`), the `.onnx` by onnxruntime. first: seconds
from the module to the first compiled result, with empty and with filled caches.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from network_records import record

NETWORK = "resnet50"
# The peak of this process alone: a child's is its parent's until it has loaded a program.
_PEAK = """
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) / 1024
"""
_LOADED = """
import sys, numpy, torch, hubel
torch.set_num_threads(THREADS)
x = torch.randn(1, 3, 224, 224)
"""
MEMORY = {
    "onnxruntime": """
import onnxruntime
before = peak()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = THREADS
run = onnxruntime.InferenceSession("FOLDER/net.onnx", options, providers=["CPUExecutionProvider"])
for _ in range(3): run.run(None, {run.get_inputs()[0].name: x.numpy()})
""",
    "hubel.Session": """
from hubel.ops.session import Session
before = peak()
run = Session.load("FOLDER/net.hubel")
for _ in range(3): run(x)
""",
    "hubel.Session small": """
from hubel.ops.session import Session
before = peak()
run = Session.load("FOLDER/net.hubel", memory="small")
for _ in range(3): run(x)
""",
}
FIRST = """
import time
net = hubel.zoo.build("resnet50", seed=0).eval()
import torch._dynamo
start = time.perf_counter()
with torch.no_grad(): torch.compile(net, backend="BACKEND")(x)
print(time.perf_counter() - start)
"""


def memory() -> tuple[list[Any], str]:
    import network_peers as peers
    import torch
    from networks import prepared

    with tempfile.TemporaryDirectory() as folder:
        task = peers.Task(prepared(NETWORK), torch.randn(1, 3, 224, 224), Path(folder))
        _ = task.onnx
        task.session.save(Path(folder) / "net.hubel")
        rows: list[dict[str, Any]] = []
        for name, code in MEMORY.items():
            whole = _PEAK + _LOADED + code + "print(peak() - before)"
            rows.append({"target": name, "growth of peak RSS MiB": _run(whole, folder)})
    for row in rows:
        row["x onnxruntime"] = row["growth of peak RSS MiB"] / rows[0]["growth of peak RSS MiB"]
    lines = [f"{r['target']:22}{r['growth of peak RSS MiB']:8.1f} MiB{r['x onnxruntime']:8.2f}x" for r in rows]
    return [record("memory", rows, how="growth of VmHWM, a process each")], "\n".join(lines)


def first() -> tuple[list[Any], str]:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for backend in ("hubel", "inductor"):
            row: dict[str, Any] = {"target": backend}
            for caches in ("cold", "warm"):
                row[f"{caches} s"] = _run(_LOADED + FIRST.replace("BACKEND", backend), folder)
            rows.append(row)
    lines = [f"{r['target']:10} cold {r['cold s']:6.2f} s   warm {r['warm s']:6.2f} s" for r in rows]
    return [record("first", rows, how="seconds of torch.compile(net)(x), a process each")], "\n".join(lines)


def _run(code: str, folder: str) -> float:
    """The number that a process prints last. Its caches lie in the folder."""
    import torch

    code = code.replace("FOLDER", folder).replace("THREADS", str(torch.get_num_threads()))
    caches = {"HUBEL_CACHE_DIR": f"{folder}/hubel", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"}
    for path in caches.values():
        Path(path).mkdir(mode=0o700, exist_ok=True)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | caches)
    if done.returncode:
        raise RuntimeError(f"a process of the benchmark ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
