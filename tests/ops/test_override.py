"""enable(), disable(), enabled(): what they switch, for how long, and what the log says of it."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hubel
from hubel.ops import fallback, override

X, W, B = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3), torch.randn(4)


@pytest.fixture(autouse=True)
def off_afterwards():
    yield
    hubel.disable()
    assert not override.is_enabled()


def test_a_block_switches_on_and_off():
    assert not override.is_enabled()
    with hubel.enabled() as log:
        assert override.is_enabled()
        F.conv2d(X, W)
    F.conv2d(X, W)
    assert not override.is_enabled()
    assert (log.native, log.fallback) == (1, 0)


def test_blocks_nest_and_each_counts_its_own():
    with hubel.enabled() as outer:
        F.conv2d(X, W)
        with hubel.enabled() as inner:
            F.conv2d(X, W)
            F.conv2d(X.double(), W.double())
        assert override.is_enabled()
        F.conv2d(X, W)
    assert (inner.native, inner.fallback) == (1, 1)
    assert (outer.native, outer.fallback) == (3, 1)


def test_enable_holds_until_disable_and_blocks_hold_by_themselves():
    hubel.enable()
    hubel.enable()
    with hubel.enabled():
        pass
    assert override.is_enabled()
    hubel.disable()
    assert not override.is_enabled()
    with hubel.enabled() as log:
        hubel.disable()
        F.conv2d(X, W)
    assert log.native == 1
    assert not override.is_enabled()


def test_a_block_ends_after_an_error():
    with pytest.raises(ZeroDivisionError), hubel.enabled():
        raise ZeroDivisionError
    assert not override.is_enabled()


def test_nothing_is_warned_or_printed():
    code = (
        "import torch, hubel; hubel.enable(); torch.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)); print('ok')"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("ok\n", "")


def test_hubel_disable_leaves_everything_to_torch(monkeypatch):
    monkeypatch.setenv("HUBEL_DISABLE", "1")
    with hubel.enabled() as log:
        assert not override.is_enabled()
        expected = F.conv2d(X, W, B)
        assert torch.equal(hubel.conv2d(X, W, B), expected)
    assert (log.native, log.fallback) == (0, 0)


def test_hubel_log_says_what_runs_where():
    code = (
        "import torch, hubel; x = torch.ones(1, 1, 3, 3); hubel.enable(); "
        "torch.conv2d(x, x); torch.conv2d(x, x); torch.conv2d(x.double(), x.double())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"HUBEL_LOG": "1", "PATH": ""}
    )
    assert done.stderr.count("n1c1o1i3x3k3x3s1p0") == 2
    assert "torch, because the dtype is torch.float64" in done.stderr


def test_an_unknown_torch_is_left_alone(monkeypatch):
    monkeypatch.setitem(fallback.SCHEMAS, "aten::convolution", "aten::convolution(Tensor input) -> Tensor")
    with pytest.warns(RuntimeWarning, match="leaves torch's kernels in place: aten::convolution of torch"):
        hubel.enable()
    assert not override.is_enabled()
    assert F.conv2d(X, W).shape == (2, 4, 6, 6)


def test_forward_and_backward_both_run_on_hubel():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3))
    with hubel.enabled() as log:
        net(X).sum().backward()
    assert (log.native, log.fallback) == (4, 0)


def test_the_graph_is_torchs_own():
    with hubel.enabled():
        y = F.conv2d(X, W.clone().requires_grad_())
    assert type(y.grad_fn).__name__ == "ConvolutionBackward0"


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: F.conv2d(X.double(), W.double()), "the dtype is torch.float64"),
        (lambda: F.conv2d(X[:0], W), "a tensor is empty"),
    ],
    ids=["float64", "empty"],
)
def test_reasons_say_why(call, reason):
    with hubel.enabled() as log:
        for _ in range(3):
            call()
    assert log.native == 0
    assert log.fallback == 3
    ((text, why), count), *others = log.reasons.items()
    assert text.startswith("convolution ")
    assert why.startswith(reason)
    assert (count, others) == (3, [])


@pytest.mark.parametrize(
    "call",
    [
        lambda: F.conv2d(X, W[:, :2]),
        lambda: F.conv2d(X, W, B[:3]),
        lambda: F.conv2d(X, W, B[None]),
        lambda: F.conv2d(X, W, padding=-1),
        lambda: F.conv2d(X, W, stride=0),
        lambda: F.conv2d(X, W, dilation=0),
        lambda: F.conv2d(X, W, groups=2),
        lambda: F.conv2d(X[..., :2], W),
        lambda: F.conv2d(X, W.double()),
        lambda: F.conv2d(X, W, B.double()),
        lambda: F.conv2d(X, W, stride=(1, 1, 1)),
        lambda: F.conv_transpose2d(X, W, output_padding=1),
        lambda: F.conv_transpose2d(X, W.transpose(0, 1), padding=9),
        lambda: F.conv_transpose2d(X, W.transpose(0, 1), output_padding=1),
        lambda: torch.convolution(X[0], W, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1),
        lambda: torch.convolution(X, W, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 0),
        lambda: torch.convolution(X, W, None, (1, 1), (0, 0), (1, 1), True, (-1, 0), 1),
        lambda: torch.convolution(X, W[0, 0], None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1),
        lambda: torch.ops.aten.convolution_backward(
            X, X, W, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, False]
        ),
    ],
)
def test_invalid_calls_raise_torchs_errors(call):
    with pytest.raises(Exception) as theirs:
        call()
    for _ in range(2):  # the second time from the table of prepared calls
        with hubel.enabled(), pytest.raises(Exception) as ours:
            call()
        assert type(ours.value) is type(theirs.value)
        assert str(ours.value) == str(theirs.value)


def test_one_number_for_all_dimensions_is_taken():
    arguments = (X, W, None, [1], [1], [1], False, [0], 1)
    expected = torch.convolution(*arguments)
    with hubel.enabled() as log:
        torch.testing.assert_close(torch.convolution(*arguments), expected)
    assert log.native == 1


def test_default_dtype_and_device_do_not_reach_the_results():
    expected = F.conv2d(X, W)
    torch.set_default_dtype(torch.float64)
    try:
        with hubel.enabled() as log, torch.device("meta"):
            y = F.conv2d(X, W)
    finally:
        torch.set_default_dtype(torch.float32)
    assert log.native == 1
    assert (y.dtype, y.device) == (torch.float32, torch.device("cpu"))
    torch.testing.assert_close(y, expected)


class Tagged(Tensor):
    """A subclass without operators of its own."""


def test_subclasses_of_tensor_come_through():
    x = X.as_subclass(Tagged)
    with hubel.enabled() as log:
        y = F.conv2d(x, W)
    assert log.native == 1
    assert type(y) is Tagged
    torch.testing.assert_close(y.as_subclass(Tensor), F.conv2d(X, W))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_tensors_of_other_kinds_never_arrive():
    quantised = torch.ops.quantized.conv2d_prepack(
        torch.quantize_per_tensor(W, 0.1, 0, torch.qint8), B, [1, 1], [0, 0], [1, 1], 1
    )
    with hubel.enabled() as log:
        assert F.conv2d(X.to("meta"), W.to("meta")).device.type == "meta"
        assert F.conv2d(X.to_mkldnn(), W).is_mkldnn
        torch.ops.quantized.conv2d(torch.quantize_per_tensor(X, 0.1, 0, torch.quint8), quantised, 0.1, 0)
    assert (log.native, log.fallback) == (0, 0)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_torch_func_transforms_see_torchs_rules():
    def loss(w: Tensor, x: Tensor) -> Tensor:
        return F.conv2d(x[None], w).square().sum()

    expected = torch.func.vmap(torch.func.grad(loss), (None, 0))(W, X)
    tangent = torch.func.jvp(lambda w: F.conv2d(X, w), (W,), (torch.ones_like(W),))
    with hubel.enabled() as log:
        found = torch.func.vmap(torch.func.grad(loss), (None, 0))(W, X)
        found_tangent = torch.func.jvp(lambda w: F.conv2d(X, w), (W,), (torch.ones_like(W),))
    assert log.native > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found_tangent, tangent, rtol=1e-4, atol=1e-4)


def test_double_backward():
    def second(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        y = F.conv2d(x, w, b, stride=2, padding=1).pow(3)
        first = torch.autograd.grad(y.sum(), (x, w, b), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), (x, w, b))  # type: ignore[arg-type]

    leaves = [t.double().requires_grad_() for t in (X, W, B)]
    expected = [g.float() for g in second(*leaves)]
    with hubel.enabled() as log:
        found = second(*(t.detach().float().requires_grad_() for t in leaves))
    assert log.fallback == 0 < log.native
    for ours, reference in zip(found, expected, strict=True):
        assert (ours - reference).norm() <= 1e-5 * reference.norm()


def test_inference_mode_gives_inference_tensors():
    with hubel.enabled() as log, torch.inference_mode():
        assert F.conv2d(X, W).is_inference()
    assert log.native == 1


def test_only_the_gradients_that_are_asked_for_are_computed():
    frozen, bias = W.clone(), B.clone().requires_grad_()
    with hubel.enabled() as log:
        F.conv2d(X, frozen, bias).sum().backward()
    assert log.fallback == 0
    torch.testing.assert_close(bias.grad, torch.full((4,), 2 * 36.0))
    results = torch.ops.aten.convolution_backward(
        torch.ones(2, 4, 6, 6), X, W, [4], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False]
    )
    with hubel.enabled():
        ours = torch.ops.aten.convolution_backward(
            torch.ones(2, 4, 6, 6), X, W, [4], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False]
        )
    assert [t is None for t in ours] == [t is None for t in results] == [True, False, True]


def test_blocks_in_several_threads_at_once():
    failures: list[BaseException] = []
    expected = F.conv2d(X, W, B)

    def work() -> None:
        try:
            for _ in range(30):
                with hubel.enabled():
                    torch.testing.assert_close(F.conv2d(X, W, B), expected)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert not override.is_enabled()


def test_a_log_counts_what_threads_do():
    with hubel.enabled() as log:
        threads = [threading.Thread(target=lambda: [F.conv2d(X, W) for _ in range(50)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert log.native == 200


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_distributed_data_parallel():
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        net = nn.parallel.DistributedDataParallel(nn.Conv2d(3, 4, 3))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with hubel.enabled() as log:
            losses = []
            for _ in range(3):
                optimizer.zero_grad()
                loss = net(X).square().mean()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
    finally:
        torch.distributed.destroy_process_group()
    assert (log.native, log.fallback) == (6, 0)
    assert losses[0] > losses[1] > losses[2]
