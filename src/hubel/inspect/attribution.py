"""Which pixels the answer rests on, by Captum: Grad-CAM and integrated gradients. Wrapped, not rewritten.

Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391): the maps of a late layer, weighted by their mean gradients, where
positive. Integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365): gradients along the way from a flat
baseline. Both must change when the weights are drawn anew (Adebayo et al. 2018, arXiv 1810.03292): a picture that does
not is one of the image, not of the network.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hubel.errors import unknown
from hubel.inspect.hooks import Call, evaluating
from hubel.inspect.running import Output, run, scores, scores_of
from hubel.records import Array, Column, Method, Record, Uncovered

COLUMNS = [
    Column(name="answer", unit="class", better=None),
    Column(name="score", unit="", better=None),
    Column(name="difference", unit="of the sum of integrated gradients from the score's, share", better="down"),
]
EXTRA = "attribution needs Captum, which is not installed: pip install 'hubel[attribution]'"


def attribution(
    net: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    pictured: tuple[int, ...] = (0,),
    layer: str | None = None,
    steps: int = 32,
    output: Output = None,
) -> Record:
    """A row an image of `pictured`; arrays `grad_cam` (images, H, W) ≥ 0, `integrated` (images, C, H, W).

    The class explained is the network's answer. layer: of Grad-CAM; by default the last convolution whose maps are
    larger than one place. The baseline is the images' mean colour. Without the extra the Record says how to install it.
    """
    del labels
    start = time.perf_counter()
    record = Record("attribution", "attribution", list(COLUMNS), level="model")
    try:
        from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam
    except ImportError:
        record.status, record.reason = "not_applicable", EXTRA
        return record
    x = images[list(pictured)]
    calls = run(net, x[:1], keep=False)[0]
    chosen = _chosen(calls, layer)
    best = scores(net, x, output).argmax(1)
    scored = _Scores(net, output)
    baseline = images.mean((0, *range(2, images.ndim)), keepdim=True).expand_as(x).contiguous()
    params: dict[str, Any] = {"pictured": list(pictured), "steps": steps, "baseline": "mean colour"}
    params["layer"] = chosen.address if chosen else None
    record.method = Method(name="Captum", params=params, source="arXiv 1610.02391, 1703.01365")
    with evaluating(net, gradients=True), torch.random.fork_rng(devices=[]):
        if chosen is not None and chosen.module is not None and x.ndim == chosen.output.ndim:
            cam = LayerGradCam(scored, chosen.module).attribute(x, target=best, relu_attributions=True)
            size = tuple(x.shape[2:])
            assert isinstance(cam, Tensor)
            cam = LayerAttribution.interpolate(cam, size, interpolate_mode="bilinear")
            record.arrays["grad_cam"] = Array(cam[:, 0].detach().float().cpu().numpy())
        else:
            reason = "no convolution module has maps to weigh" if chosen is None else "its maps do not lie on the input"
            record.uncovered.append(Uncovered(target="grad_cam", reason=reason))
        gradients = IntegratedGradients(scored)
        found = gradients.attribute(x, baselines=baseline, target=best, n_steps=steps, internal_batch_size=len(x))
    with evaluating(net):
        ends = scored(x).gather(1, best[:, None])[:, 0] - scored(baseline).gather(1, best[:, None])[:, 0]
    total = found.flatten(1).sum(1).detach()
    record.arrays["integrated"] = Array(found.detach().float().cpu().numpy().astype(np.float32), "score")
    with evaluating(net):
        rows = scored(x)
    for i, number in enumerate(pictured):
        size_ = max(abs(float(ends[i])), 1e-12)
        cells = {"answer": int(best[i]), "score": float(rows[i, best[i]])}
        record.rows.append({"target": f"image {number}", **cells, "difference": abs(float(total[i] - ends[i])) / size_})
    record.seconds = time.perf_counter() - start
    return record


class _Scores(nn.Module):
    """The network, with its scores as its only answer."""

    def __init__(self, net: nn.Module, output: Output) -> None:
        super().__init__()
        self.net, self.output = net, output
        self.train(net.training)  # hooks of a mode of its own would change the network's

    def train(self, mode: bool = True) -> _Scores:
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return scores_of(self.net(x), len(x), self.output)


def _chosen(calls: list[Call], layer: str | None) -> Call | None:
    modules = {c.address: c for c in calls if c.module is not None and c.output.ndim == 4 and "@" not in c.address}
    if layer is not None:
        if layer not in modules:
            raise unknown("convolution", layer, modules)
        return modules[layer]
    return next((c for c in reversed(list(modules.values())) if max(c.output.shape[2:]) > 1), None)
