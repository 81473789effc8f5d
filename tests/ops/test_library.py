"""hubel::convolution as an operator: torch's own checks of its pieces, gradients, compile, autocast, vmap."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

import hubel
from hubel.ops import library
from hubel.ops.log import Log

# (input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)
CASES = {
    "tiny": ((1, 2, 2), (2, 1, 2), 2, [2], [0], [1], True, [1], 2),
    "conv1d": ((2, 4, 9), (6, 2, 3), 6, [2], [1], [1], False, [0], 2),
    "conv2d": ((2, 3, 6, 7), (4, 3, 3, 3), 4, [1, 2], [1, 0], [1, 1], False, [0, 0], 1),
    "depthwise": ((1, 4, 6, 6), (4, 1, 3, 3), None, [1, 1], [1, 1], [2, 1], False, [0, 0], 4),
    "conv3d": ((1, 2, 4, 5, 6), (3, 2, 2, 2, 2), None, [1, 1, 1], [0, 0, 0], [1, 1, 1], False, [0, 0, 0], 1),
    "transposed": ((2, 4, 5, 5), (4, 3, 3, 3), 3, [2, 2], [1, 1], [1, 1], True, [1, 1], 1),
    "dilated further than stride": ((1, 2, 4, 4), (2, 3, 2, 2), 3, [2, 1], [0, 0], [4, 3], True, [3, 2], 1),
}


def _arguments(name: str, dtype: torch.dtype = torch.float32) -> tuple:
    x, w, bias, *config = CASES[name]
    generator = torch.Generator().manual_seed(0)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

    return (draw(x), draw(w), None if bias is None else draw((bias,)), *config)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["tiny", "depthwise", "conv3d"])
def test_opcheck(name):
    arguments = _arguments(name)
    torch.library.opcheck(library.convolution, arguments)
    x, w, b, *config = arguments
    dy = torch.randn_like(library.convolution(*arguments)).requires_grad_()
    sizes = None if b is None else b.shape
    for mask in ([True, True, b is not None], [True, False, False], [False, True, False]):
        torch.library.opcheck(library.convolution_backward, (dy, x, w, sizes, *config, mask))


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives_against_float64(name):
    def derivatives(op, arguments) -> list[Tensor]:
        leaves = [a for a in arguments[:3] if a is not None]
        y = op(*arguments).pow(3)
        first = torch.autograd.grad(y.sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)  # type: ignore[arg-type]
        return [y, *first, *second]

    log = Log()
    found = derivatives(library.convolution, _arguments(name))
    assert log.native >= 4
    expected = derivatives(torch.ops.aten.convolution.default, [
        a.detach().double().requires_grad_() if isinstance(a, Tensor) else a for a in _arguments(name)
    ])  # fmt: skip
    for ours, reference in zip(found, expected, strict=True):
        assert (ours.double() - reference).norm() <= 1e-5 * reference.norm()


def test_gradgradcheck_of_the_formulas():
    # In float64 the op is torch's; the formulas around it are ours.
    x, w, b, *config = _arguments("tiny", torch.float64)

    def op(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return library.convolution(x, w, b, *config)

    assert torch.autograd.gradcheck(op, (x, w, b))
    assert torch.autograd.gradgradcheck(op, (x, w, b))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_compile_with_a_full_graph_and_changing_sizes():
    net = hubel.nn.swap(
        torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding="same"), torch.nn.ConvTranspose2d(4, 2, 2))
    )
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in (8, 9, 12):
        x = torch.randn(2, 3, size, size + 1, requires_grad=True)
        assert_close(compiled(x), net(x))
        ours, theirs = (torch.autograd.grad(f(x).sum(), [x, *net.parameters()]) for f in (compiled, net))
        assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_export_keeps_the_operator():
    net = hubel.nn.swap(torch.nn.Conv2d(3, 4, 3)).eval()
    program = torch.export.export(net, (torch.randn(1, 3, 8, 8),))
    assert any(node.target is library.convolution for node in program.graph.nodes)


def test_autocast_as_torchs():
    x, w = torch.randn(1, 3, 6, 6), torch.randn(2, 3, 3, 3, requires_grad=True)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            ours, theirs = hubel.conv2d(x, w), F.conv2d(x, w)
        assert ours.dtype == theirs.dtype == dtype
        assert_close(ours, theirs)
    ours.float().sum().backward()
    assert w.grad is not None


@pytest.mark.parametrize("dims", [(0, None, None), (1, None, None), (None, 0, None), (0, 0, 0), (None, 0, 0)])
def test_vmap(dims):
    shapes = [(2, 3, 6, 6), (4, 3, 3, 3), (4,)]
    given: Any = [
        torch.randn(shape) if dim is None else torch.randn(5, *shape).movedim(0, dim)
        for shape, dim in zip(shapes, dims, strict=True)
    ]
    assert_close(torch.vmap(hubel.conv2d, dims)(*given), torch.vmap(F.conv2d, dims)(*given), rtol=1e-4, atol=1e-5)


def test_gradients_of_each_sample():
    x, w = torch.randn(5, 3, 6, 6), torch.randn(4, 3, 3, 3)

    def grad(conv: Any) -> Tensor:
        return torch.vmap(torch.func.grad(lambda w, x: conv(x[None], w).square().sum()), (None, 0))(w, x)

    assert_close(grad(hubel.conv2d), grad(F.conv2d), rtol=1e-4, atol=1e-3)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_forward_mode():
    x, w, b = torch.randn(1, 3, 6, 6), torch.randn(4, 3, 3, 3), torch.randn(4)
    tangents = tuple(torch.randn_like(t) for t in (x, w, b))
    for used in ((0, 1, 2), (0,), (1,)):
        given, along = tuple((x, w, b)[i] for i in used), tuple(tangents[i] for i in used)

        def call(conv: Any, *some: Tensor, used: tuple[int, ...] = used) -> Tensor:
            all_ = [x, w, b]
            for i, t in zip(used, some, strict=True):
                all_[i] = t
            return conv(*all_)

        ours, theirs = (torch.func.jvp(lambda *t, f=f: call(f, *t), given, along) for f in (hubel.conv2d, F.conv2d))
        assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
