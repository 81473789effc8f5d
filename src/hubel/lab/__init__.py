"""The lab: runs that leave Records. Training here; timing in `bench` and `step_time`.

run = hubel.lab.train("lenet5", "mnist", out="run")         # train, test once on held-out images, keep
run = hubel.lab.load_run("run")                             # later: run.model, run.accuracy, run.held_out()
"""

from __future__ import annotations

from hubel.lab.config import ConfigError, TrainingConfig
from hubel.lab.run import Epoch, TrainingRun, load_run
from hubel.lab.train import Diverged, train

__all__ = ["ConfigError", "Diverged", "Epoch", "TrainingConfig", "TrainingRun", "load_run", "train"]
