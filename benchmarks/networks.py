"""Times whole networks: Hubel beside torch, Inductor and the engines for inference, each as its users drive it.

    python benchmarks/networks.py resnet18 mobilenet_v2 [--threads 2] [--batch 1] [--rounds 15] [-o benchmarks/results]
    python benchmarks/networks.py --engines session,torch,onnxruntime --isa avx2
    python benchmarks/networks.py --train              forward, backward and SGD; batch 16, 64²
    python benchmarks/networks.py --memory             growth of peak RSS of a ResNet-50, a process each
    python benchmarks/networks.py --first              the first compiled result of a ResNet-50, cold and warm

The same weights everywhere (random, batch norms with statistics as after training), float32. Every engine's answer is
held against float64 before it is timed (`network_peers.py` says how each is driven). Rounds are interleaved, ratios are
medians within rounds, by the rules of `hubel bench`. --isa holds every engine to an older instruction set, as there.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import sys
from pathlib import Path
from typing import Any

from hubel.lab import held

NETWORKS = (
    "lenet5", "alexnet", "vgg16", "resnet18", "resnet50", "inception_v3", "mobilenet_v1", "mobilenet_v2",
    "efficientnet_lite0", "convnext_tiny",
)  # fmt: skip
TRAINED = ("resnet18", "vgg11_bn", "mobilenet_v2")
TRAINING_BATCH, TRAINING_SIZE = 16, 64
# More than this share of the answer is no answer.
WRONG = 1e-4


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--engines", default="", help="which of session, compiled, torch, inductor, onnxruntime, ...")
    parser.add_argument("--isa", help="hold every engine to an older instruction set: avx2")
    modes = parser.add_mutually_exclusive_group()
    for mode in ("train", "memory", "first"):
        modes.add_argument(f"--{mode}", action="store_true")
    parser.add_argument("-o", "--out", type=Path)
    return parser.parse_args()


def prepared(name: str) -> Any:
    """The network with random weights and statistics that batch norms could have, in evaluation mode."""
    import torch
    from torch import nn

    import hubel

    net = hubel.zoo.build(name, seed=0).eval()
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    return net


def inference(given: argparse.Namespace) -> tuple[list[Any], str]:
    """A row a network: milliseconds and error of every engine, and the ratios."""
    import network_peers as peers
    import torch

    import hubel
    from hubel.lab import timing

    asked = given.engines.split(",") if given.engines else list(peers.ENGINES)
    rows, uncovered = [], []
    for name in given.networks or NETWORKS:
        net = prepared(name)
        x = torch.randn(given.batch or 1, *hubel.zoo.describe(name).input, generator=torch.Generator().manual_seed(1))
        with torch.no_grad(), peers.contenders(net, x, asked) as (made, declined):
            exact = copy.deepcopy(net).double()(x.double())
            row: dict[str, Any] = {"target": name}
            for engine, contender in list(made.items()):
                result = contender.call()
                y = contender.read(result)[0] if contender.read else result
                row[f"{engine} error"] = ((y.double() - exact).norm() / exact.norm()).item()
                if not row[f"{engine} error"] <= WRONG:
                    del made[engine]
                    declined[engine] = f"wrong: {row[f'{engine} error']:.1e} from float64"
            taken = timing.measure(list(made.values()), rounds=given.rounds)
        for engine in made:
            row[f"{engine} ms"] = timing.scaled(taken.seconds(engine), 1e3)
        for ours, rivals, title in (
            ("hubel.Session", peers.PEERS, "Session x peers"),
            ("hubel compiled", peers.INDUCTOR, "compiled x inductor"),
            ("hubel compiled", peers.EAGER, "compiled x torch"),
        ):
            there = [rival for rival in rivals if rival in made]
            if ours in made and there:
                row[title] = taken.ratio(taken.best(there), ours)
        rows.append(row)
        uncovered += [{"target": f"{name}, {engine}", "reason": reason} for engine, reason in declined.items()]
        print(text_of(rows[-1:], uncovered[len(uncovered) - len(declined) :]), flush=True)
    from network_records import record

    return [record("networks", rows, uncovered)], text_of(rows, uncovered)


def text_of(rows: list[dict[str, Any]], uncovered: list[dict[str, str]]) -> str:
    """Milliseconds (and errors) of the engines, ratios with their intervals and geometric means, what has no figure."""
    from hubel.lab.text_table import interval, middle, ratio, table, time

    engines = list(dict.fromkeys(key[:-3] for row in rows for key in row if key.endswith(" ms")))
    titles = list(dict.fromkeys(key for row in rows for key in row if " x " in key))
    lines = []
    for row in rows:
        cells = [f"{time(row.get(f'{e} ms'))} ({row.get(f'{e} error', math.nan):.0e})" for e in engines]
        lines.append([row["target"], *cells])
    parts = [table(["ms (error)", *engines], lines)]
    lines = [[row["target"], *(f"{ratio(row.get(t))}  {interval(row.get(t))}" for t in titles)] for row in rows]
    means = []
    for title in titles:
        found = [value for row in rows if (value := middle(row.get(title))) is not None]
        means.append(f"{math.exp(sum(map(math.log, found)) / len(found)):.2f}" if found else "-")
    if titles:
        parts.append(table(["ratio, 95 %", *titles], [*lines, ["geometric mean", *means]]))
    if uncovered:
        parts.append("no figure\n" + "\n".join(f"  {one['target']}: {one['reason']}" for one in uncovered))
    return "\n\n".join(parts)


def main() -> None:
    given = arguments()
    if given.isa:
        if not held.is_prepared(given.isa):
            os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | held.VARIABLES[given.isa])
        held.hold(given.isa)
    import torch
    from network_records import save

    from hubel.lab import conditions

    torch.set_num_threads(given.threads or torch.get_num_threads())
    watch = conditions.Watch()
    if given.train:
        from network_training import training

        kind, (records, text) = "training", training(given.networks or TRAINED, given.rounds)
    elif given.memory or given.first:
        import network_processes as processes

        kind = "memory" if given.memory else "first result"
        records, text = processes.memory() if given.memory else processes.first()
    else:
        kind, (records, text) = "networks", inference(given)
    names = " ".join(given.networks) if len(given.networks) in (1, 2, 3) else ""
    batch = f" batch {given.batch}" if given.batch else ""
    document = watch.document(
        kind, f"{kind} {names}{batch}".strip(), records, threads=torch.get_num_threads(), seed=0,
        engine=given.engines or "all", params=0,
    )  # fmt: skip
    print(save(document, text, given.out))


if __name__ == "__main__":
    main()
