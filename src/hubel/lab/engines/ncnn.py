"""ncnn: a network of one layer as a text and a file of weights, fp16 and bf16 off. One image at a time.

Its Winograd is on, as by default. Packing channels in and out is in its figure; what the layer takes without that is
timed on an image that is packed already, with an output that stays so.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hubel.engine import Machine
from hubel.lab.engines.door import Declined, Outputs, Tensors, library
from hubel.lab.shapes import Case
from hubel.lab.timing import Contender, time_share

# The ids of a layer's parameters, a dimension each, from the innermost axis out.
KERNEL, DILATION, STRIDE, PADDING = (1, 11, 21), (2, 12, 22), (3, 13, 23), (4, 14, 24)
OUTPUT_PADDING = (18, 19, 20)
HALF_PRECISION = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage", "use_bf16_packed")


def ncnn(case: Case, tensors: Tensors) -> Contender | Declined:
    if case.spec.batch != 1:
        return Declined("one image at a time, no batches")
    library_ = library("ncnn")
    net = library_.Net()
    net.opt.num_threads = torch.get_num_threads()
    for option in HALF_PRECISION:
        setattr(net.opt, option, False)
    with tempfile.TemporaryDirectory() as folder:
        text, weights = Path(folder) / "net.param", Path(folder) / "net.bin"
        text.write_text(network(case))
        weights.write_bytes(_weights(case, tensors))
        if net.load_param(str(text)) or net.load_model(str(weights)):
            return Declined("it refuses the layer")
    image = tensors.arrays()[0][0]
    # The Mat points to the array, which the closure keeps alive.
    x = library_.Mat(image), image

    def call() -> object:
        extractor = net.create_extractor()
        extractor.input("x", x[0])
        return extractor.extract("y")[1]

    def read(output: object) -> Outputs:
        return (torch.from_numpy(np.array(output))[None],)

    def layer_share() -> float:
        packed = _packed(library_, x[0], case)

        def unconverted() -> object:
            extractor = net.create_extractor()
            extractor.input("x", packed)
            return extractor.extract("y", 1)[1]

        return time_share(unconverted, call)

    return Contender("ncnn", call, family="ncnn", read=read, layer_share=layer_share)


def _packed(library_: Any, image: Any, case: Case) -> Any:
    """The image with as many channels side by side as ncnn would pack on this machine."""
    widths = [n for n in (16, 8, 4) if n <= Machine.detect().lanes and case.input_shape[1] % n == 0]
    return library_.convert_packing(image, max(widths, default=1))


def network(case: Case) -> str:
    """The .param text: magic number, counts of layers and blobs, a line a layer."""
    spec = case.spec
    dimensions = {1: "1D", 2: "", 3: "3D"}[spec.ndim]
    name = (
        ("Deconvolution" if case.transposed else "Convolution") + ("DepthWise" if spec.groups > 1 else "") + dimensions
    )
    values: dict[int, int] = {0: case.output_shape[1], 5: int(case.problem.bias), 6: spec.parameters}
    for ids, sizes in (
        (KERNEL, spec.kernel_size),
        (DILATION, spec.dilation),
        (STRIDE, spec.stride),
        (PADDING, spec.padding),
        *(((OUTPUT_PADDING, case.output_padding),) if case.transposed else ()),
    ):
        values |= dict(zip(ids, reversed(sizes), strict=False))
    if spec.groups > 1:
        values[7] = spec.groups
    parameters = " ".join(f"{number}={value}" for number, value in sorted(values.items()))
    return f"7767517\n2 2\nInput x 0 1 x\n{name} layer 1 1 x y {parameters}\n"


def _weights(case: Case, tensors: Tensors) -> bytes:
    """The .bin: a word that says float32, the weights, the bias."""
    _, w, b = tensors.arrays()
    if case.transposed:
        # Output channels first, within each group.
        groups, taps = case.spec.groups, w.shape[2:]
        w = w.reshape(groups, w.shape[0] // groups, w.shape[1], *taps).swapaxes(1, 2)
    return bytes(4) + np.ascontiguousarray(w).tobytes() + (b"" if b is None else b.tobytes())
