"""`hubel demo`: the main job, whole. Train on real digits, time the same step under PyTorch, look inside, write a page.

hubel-demo/
├── report.html          the page
├── document.json        everything the page shows, and arrays.npz beside it
└── run/                 the training run: weights before and after, curves (see hubel.lab.run)
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import hubel.report
from hubel import data as datasets
from hubel import lab, zoo
from hubel.errors import DataError
from hubel.lab import step_time
from hubel.lab.config import adam
from hubel.lab.run import TrainingRun
from hubel.ops.override import enabled
from hubel.records import Array, Document, Record
from hubel.report.sections.summary import spoken

ARCH, DATA = "lenet5", "mnist"
# What of the progress bar each stage takes: about its share of the time.
_TRAINING, _TIMING, _LOOKING = 0.6, 0.15, 0.25
_MOST_FOLDERS = 1000

Progress = Callable[[float, float, str], None]


@dataclass(frozen=True)
class Demo:
    """What was written, and where. `print(demo)` says what was found and what to type next."""

    report: Path
    run: TrainingRun
    document: Document

    def __str__(self) -> str:
        return "\n".join(
            [
                *spoken(self.document),
                "",
                f"The page: {self.report}",
                "",
                "Three things to type next:",
                *[f"  {command:<{_width(self)}}  # {what}" for command, what in self.commands],
            ]
        )

    @property
    def commands(self) -> list[tuple[str, str]]:
        """Command lines that run as they are (the last one with the user's own names in it), and what each does."""
        run = shlex.quote(str(self.run.path))
        return [
            (f"hubel plan {run}", "what the engine runs for each convolution, and why"),
            ("hubel train lenet5 --data digits -o digits-run", "the same network on smaller digits"),
            ("hubel report your.module:factory --data FOLDER", "look inside your own network"),
        ]


def run(
    out: str | Path = "hubel-demo",
    *,
    seed: int = 0,
    epochs: int = 12,
    rounds: int = step_time.ROUNDS,
    progress: Progress | None = None,
) -> Demo:
    """Everything, in about a minute. Nothing is overwritten: if `out` exists, the next free `out-2`, ... is made.

    epochs: of training; rounds: of the timed steps. Ctrl-C while training keeps what is done: the page says that it
    was stopped, and nothing is timed.
    """
    tell = progress or (lambda done, total, stage: None)
    folder = free_folder(Path(out))
    training = lab.train(ARCH, DATA, seed=seed, epochs=epochs, out=folder / "run", progress=_part(tell, 0.0, _TRAINING))
    timed = None
    if training.document.status == "complete":
        tell(_TRAINING, 1, "timing the training step against PyTorch")
        timed = timed_step(training, rounds=rounds, seed=seed)
    with enabled():
        document = hubel.report.document_of(training, progress=_part(tell, _TRAINING + _TIMING, _LOOKING))
    document.records += [timed] if timed is not None else []
    document.save(folder)
    page = hubel.report.render(document, folder / "report.html")
    tell(1, 1, "done")
    return Demo(page, training, document)


def free_folder(wanted: Path) -> Path:
    """Make and return `wanted`, or the first of `wanted-2`, `wanted-3`, ... that does not exist."""
    for n in range(1, _MOST_FOLDERS):
        folder = wanted if n == 1 else wanted.with_name(f"{wanted.name}-{n}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise DataError(
                f"The demo writes a new folder. Received: {folder} ({error.strerror}). Name another place with --out."
            ) from None
        return folder
    raise DataError(
        f"The demo writes a new folder. Received: {wanted}, and {_MOST_FOLDERS} like it exist. Remove some."
    )


def timed_step(training: TrainingRun, *, rounds: int, seed: int) -> Record:
    """The step that the run consisted of, under Hubel and under PyTorch: its batch size, its optimizer, real digits."""
    config = training.config
    images, _, _ = datasets.split(datasets.load(DATA), config["split"], config["split_seed"])
    assert images.labels is not None
    batch = (images.images[: config["batch_size"]], images.labels[: config["batch_size"]])
    outcome = step_time.step_time(
        lambda: zoo.build(ARCH, seed=seed),
        batch,
        optimizer=lambda parameters: adam(parameters, config["lr"]),
        rounds=rounds,
        seed=seed,
    )
    record = step_time.record(outcome)
    ratios = outcome.rounds.ratios(outcome.torch, "hubel", clean_only=False)
    record.arrays["ratios"] = Array(np.array(ratios), "torch / hubel")
    return record


def _part(tell: Progress, start: float, share: float) -> Progress:
    """Progress of one stage as progress of the whole."""
    return lambda done, total, stage: tell(start + share * done / max(total, 1e-9), 1.0, stage)


def _width(demo: Demo) -> int:
    return max(len(command) for command, _ in demo.commands)
