"""Profilers show Hubel's kernels by name."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

import hubel
from hubel.engine import Machine, Policy, Problem, choose


def test_torchs_profiler_names_problem_and_algorithm() -> None:
    x, w = torch.randn(1, 3, 12, 12), torch.nn.Parameter(torch.randn(4, 3, 3, 3))
    with hubel.enabled():
        F.conv2d(x, w, padding=1)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            F.conv2d(x, w, padding=1).sum().backward()
    names = {event.key for event in profiled.key_averages() if event.key.startswith("hubel")}
    forward, backward = sorted(names, key=len)
    problem = "n1c3o4i12x12k3x3s1p1"
    algorithm = choose(Problem.parse(problem), Machine.detect(), Policy(threads=torch.get_num_threads())).algorithm
    assert forward == f"hubel::convolution {algorithm} {problem}"
    assert backward.startswith("hubel::convolution_backward") and f"{problem}/weight_gradient" in backward


def test_calls_of_torch_say_why() -> None:
    x, w = torch.randn(1, 3, 12, 12).double(), torch.randn(4, 3, 3, 3).double()
    with hubel.enabled(), profile(activities=[ProfilerActivity.CPU]) as profiled:
        F.conv2d(x, w)
    (name,) = [event.key for event in profiled.key_averages() if event.key.startswith("hubel")]
    assert "torch, because" in name and "float64" in name
