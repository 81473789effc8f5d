"""Times the microscope: `hubel report resnet50 --data CROPS` with 500 crops of photographs, as a user calls it.

    python benchmarks/report.py [--network resnet50] [--crops 500] [--profile quick] [--runs 3] [-o benchmarks/results]

The crops are cut from scikit-learn's and scikit-image's photographs. A first run, with few crops, compiles the kernels
(the engine's cache is warm afterwards, as a user's is); then come the runs, each in a process of its own with an empty
cache of analyses. Of each: seconds until the page is written, the largest memory, the page's size. At last Chromium, if
it is there, opens the page: seconds until the first picture, and how many elements there are.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_images

from hubel.lab.conditions import describe_machine
from hubel.records import write_atomically

SIZE = 224


def crops(folder: Path, count: int, seed: int = 0) -> None:
    """Writes so many squares of SIZE pixels, from as many scales and places."""
    photographs = [*load_sample_images().images, data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    draw = np.random.default_rng(seed)
    for i in range(count):
        photograph = Image.fromarray(photographs[i % len(photographs)])
        side = int(draw.integers(SIZE // 2, min(photograph.size) + 1))
        left, top = (int(draw.integers(0, length - side + 1)) for length in photograph.size)
        square = photograph.crop((left, top, left + side, top + side)).resize((SIZE, SIZE))
        square.save(folder / f"{i:04}.png")


def report(network: str, folder: Path, profile: str, page: Path, cache: Path) -> dict[str, float]:
    """One call of the command: seconds, megabytes of memory at most, megabytes of the page."""
    command = [sys.executable, "-c", "from hubel.cli import main; main()", "report", network, "--data", str(folder)]
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--profile", profile, "-o", str(page)],
        env=os.environ | {"HUBEL_CACHE_DIR": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    told = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"hubel report failed:\n{told}")
    return {
        "seconds": time.perf_counter() - start,
        "memory MB": used.ru_maxrss * 1024 / 1e6,
        "page MB": page.stat().st_size / 1e6,
    }


def forget_analyses(cache: Path) -> None:
    """Leaves the engine's kernels and nothing of earlier looks."""
    for path in cache.rglob("inspect"):
        shutil.rmtree(path)


def opened(page: Path) -> dict[str, float] | None:
    """Seconds until Chromium has the first picture, and the page's elements; None where there is no Chromium."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1440, "height": 900})
        start = time.perf_counter()
        tab.goto(page.resolve().as_uri(), wait_until="commit")
        tab.wait_for_function("[...document.querySelectorAll('img, canvas, svg')].some(e => e.getClientRects().length)")
        first = time.perf_counter() - start
        tab.wait_for_load_state("load")
        elements = tab.evaluate("document.querySelectorAll('*').length")
        browser.close()
    return {"first picture s": first, "elements": elements}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--crops", type=int, default=500)
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("-o", "--out", type=Path)
    given = parser.parse_args()
    result: dict[str, Any] = {
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": describe_machine(),
        "network": given.network,
        "crops": given.crops,
        "profile": given.profile,
    }
    with tempfile.TemporaryDirectory() as name:
        few, many, cache, page = (Path(name) / part for part in ("few", "many", "cache", "report.html"))
        for folder in (few, many, cache):
            folder.mkdir(mode=0o700)
        crops(few, 12)
        crops(many, given.crops)
        report(given.network, few, given.profile, page, cache)
        result["runs"] = []
        for _ in range(given.runs):
            forget_analyses(cache)
            result["runs"].append(report(given.network, many, given.profile, page, cache))
            print(result["runs"][-1], flush=True)
        result["median"] = {key: statistics.median(run[key] for run in result["runs"]) for key in result["runs"][0]}
        result["opened"] = opened(page)
    text = json.dumps(result, indent=1)
    print(text)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        stem = f"{result['created'].replace(':', '-')}-report-{given.network}"
        write_atomically(given.out / f"{stem}.json", text.encode())


if __name__ == "__main__":
    main()
