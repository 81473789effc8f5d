"""Packed weights never go stale, whatever writes to them; and they are kept where that is safe."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

import hubel
from hubel.engine.invoke import Invocation
from hubel.ops import weights

X = torch.randn(2, 3, 8, 8)


@pytest.fixture
def packings(monkeypatch):
    """How often weights were packed: a list that grows by the address of each."""
    seen: list[int] = []
    original = Invocation.pack

    def pack(self, weight: int, packed: int, threads: int = 1) -> None:
        seen.append(weight)
        original(self, weight, packed, threads)

    monkeypatch.setattr(Invocation, "pack", pack)
    return seen


def _right(net: nn.Module, x: Tensor = X) -> None:
    """The network's output under enable() is that of its weights as they are now."""
    with torch.no_grad():
        expected = net(x)
        with hubel.enabled() as log:
            found = net(x)
    assert log.native > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def _layer(out: int = 4) -> nn.Conv2d:
    return nn.Conv2d(3, out, 3)


# --- what is kept ------------------------------------------------------------------------------------------------


def test_a_parameter_is_packed_once(packings):
    net = _layer()
    for _ in range(5):
        _right(net)
    assert len(packings) == 1


def test_forward_and_input_gradient_are_two_forms_kept_side_by_side(packings):
    net, x = _layer(), X.clone().requires_grad_()
    with hubel.enabled():
        for _ in range(3):
            net(x).sum().backward()
    assert len(packings) == 2
    assert len(weights._records[id(net.weight)].forms) == 2


def test_at_most_two_forms_are_kept():
    net = _layer()
    for x in (X, torch.randn(1, 3, 40, 40), torch.randn(1, 3, 3, 3)):
        x = x.clone().requires_grad_()
        with hubel.enabled():
            net(x).sum().backward()
    assert len(weights._records[id(net.weight)].forms) <= 2


def test_temporary_weights_are_packed_every_time(packings):
    w = torch.randn(4, 3, 3, 3)
    with hubel.enabled():
        for _ in range(3):
            torch.testing.assert_close(F.conv2d(X, w), F.conv2d(X, w.clone()))
    assert len(packings) == 6
    assert id(w) not in weights._records


class Fixed(nn.Module):
    """A convolution whose weight is a buffer."""

    weight: Tensor

    def __init__(self, persistent: bool) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(4, 3, 3, 3), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight)


@pytest.mark.parametrize(("persistent", "times"), [(True, 1), (False, 3)])
def test_persistent_buffers_are_kept_and_others_are_not(packings, persistent, times):
    net = Fixed(persistent)
    for _ in range(3):
        _right(net)
    assert len(packings) == times


def test_buffers_that_were_not_seen_being_registered_are_learnt(packings):
    net = Fixed(persistent=True)
    weights._buffers.clear()
    weights.learn_buffers(net)
    for _ in range(3):
        _right(net)
    assert len(packings) == 1


def test_inference_tensors_are_packed_every_time(packings):
    with torch.inference_mode():
        net = _layer()
        for _ in range(3):
            with hubel.enabled():
                net(X)
    assert len(packings) == 3


def test_parameters_that_are_parts_of_larger_memory_are_packed_every_time(packings):
    net = _layer()
    net.weight = nn.Parameter(torch.randn(4, 3, 3, 6)[..., ::2])
    for _ in range(3):
        _right(net)
    assert len(packings) == 3


def test_records_end_with_their_weights():
    net = _layer()
    _right(net)
    name = id(net.weight)
    assert name in weights._records
    del net
    gc.collect()
    assert name not in weights._records


def test_training_reuses_the_packed_memory():
    net = _layer()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    addresses = set()
    with hubel.enabled():
        for _ in range(4):
            net(X).sum().backward()
            (form,) = weights._records[id(net.weight)].forms.values()
            addresses.add(form.address)
            del form  # whoever holds it keeps its memory
            optimizer.step()
    assert len(addresses) == 1


# --- what may change a weight ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"foreach": True}, {"fused": True}], ids=["plain", "foreach", "fused"])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_optimizer_steps(optimizer, how):
    net = _layer()
    stepper = optimizer(net.parameters(), lr=0.5, **how)
    for _ in range(3):
        _right(net)
        net(X).square().mean().backward()
        stepper.step()
        _right(net)


def _numpy_write(net: nn.Conv2d) -> None:
    net.weight.detach().numpy()[:] += 1


def _data_write(net: nn.Conv2d) -> None:
    net.weight.data.mul_(2)


def _one_kernel_through_data(net: nn.Conv2d) -> None:
    net.weight.data[2].zero_()


def _data_exchanged(net: nn.Conv2d) -> None:
    net.weight.data = torch.randn_like(net.weight)


def _data_transposed(net: nn.Conv2d) -> None:
    # The same memory and shape, other strides.
    net.weight.data = net.weight.data.transpose(2, 3)


def _parameter_exchanged(net: nn.Conv2d) -> None:
    net.weight = nn.Parameter(torch.randn_like(net.weight))


def _in_place(net: nn.Conv2d) -> None:
    with torch.no_grad():
        net.weight[1, 1, 1, 1] += 10


def _in_place_in_inference_mode(net: nn.Conv2d) -> None:
    with torch.inference_mode():
        net.weight[1, 1, 1, 1] += 10


def _loaded(net: nn.Conv2d) -> None:
    net.load_state_dict(_layer().state_dict())


def _assigned(net: nn.Conv2d) -> None:
    net.load_state_dict(_layer().state_dict(), assign=True)


def _averaged(net: nn.Conv2d) -> None:
    with torch.no_grad():
        torch._foreach_lerp_(  # type: ignore[attr-defined]
            list(net.parameters()), list(_layer().parameters()), 0.5
        )


def _channels_last(net: nn.Conv2d) -> None:
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _initialised(net: nn.Conv2d) -> None:
    nn.init.xavier_normal_(net.weight)


WRITES = (
    _numpy_write, _data_write, _one_kernel_through_data, _data_exchanged, _data_transposed, _parameter_exchanged,
    _in_place, _in_place_in_inference_mode, _loaded, _assigned, _averaged, _channels_last, _initialised,
)  # fmt: skip


@pytest.mark.parametrize("write", WRITES)
def test_writes_are_seen(write):
    net = _layer()
    _right(net)
    before = net(X)
    write(net)
    _right(net)
    if write is not _channels_last:
        assert not torch.equal(net(X), before), "the test changes nothing"


@pytest.mark.parametrize("channels", [1, 4, 64, 300])
def test_zeroing_any_one_kernel_through_data_is_seen(channels):
    net = _layer(channels)
    for kernel in {0, channels // 2, channels - 1}:
        _right(net)
        net.weight.data[kernel].zero_()
        _right(net)


def test_the_average_of_a_network():
    net = _layer()
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    for _ in range(3):
        _right(average)
        with torch.no_grad():
            net.weight.add_(1)
        average.update_parameters(net)
        _right(average)


def test_repack_is_for_writes_that_nothing_sees():
    net = _layer(300)
    _right(net)
    flat = net.weight.detach().numpy().reshape(-1)
    sampled = _places(net.weight)
    flat[[i for i in range(flat.size) if i not in sampled]] += 10
    with torch.no_grad(), hubel.enabled():
        stale = net(X)
    assert not torch.allclose(stale, net(X)), "if this write is seen, the docs say too little"
    assert hubel.repack(net) is net
    _right(net)


def _places(w: Tensor) -> set[int]:
    """The indices of the sampled values in the weight's memory."""
    numbered = torch.arange(w.numel(), dtype=torch.int32).reshape(w.shape)
    return {*np.frombuffer(weights._sampled(numbered).tobytes(), dtype=np.int32).tolist()}


def test_weight_norm_and_parametrizations():
    net = parametrizations.weight_norm(_layer())
    _right(net)
    with torch.no_grad():
        net.parametrizations.weight.original0.mul_(3)  # type: ignore[union-attr]
    _right(net)

    class Symmetric(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return w + w.transpose(2, 3)

    net = _layer()
    parametrize.register_parametrization(net, "weight", Symmetric())
    _right(net)
    with parametrize.cached():
        _right(net)


def test_functional_call_uses_the_given_weights(packings):
    net = _layer()
    _right(net)
    for _ in range(2):
        given = {name: torch.randn_like(p) for name, p in net.named_parameters()}
        expected = torch.func.functional_call(net, given, (X,))
        with hubel.enabled():
            found = torch.func.functional_call(net, given, (X,))
        torch.testing.assert_close(found, expected)
    _right(net)


def test_stacked_weights_under_vmap():
    nets = [_layer() for _ in range(3)]
    params, _ = torch.func.stack_module_state(nets)
    for _ in range(2):
        with torch.no_grad():
            for p in params.values():
                p.add_(0.5)
        expected = torch.vmap(lambda p: torch.func.functional_call(nets[0], p, (X,)))(params)
        with hubel.enabled():
            found = torch.vmap(lambda p: torch.func.functional_call(nets[0], p, (X,)))(params)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_autocasts_weights_are_packed_for_each_call(packings):
    net = _layer()
    for calls in (1, 2):
        with torch.autocast("cpu", torch.bfloat16), hubel.enabled() as log:
            assert net(X).dtype == torch.bfloat16
        assert (log.native, log.fallback, len(packings)) == (1, 0, calls)


def test_checkpointing_recomputes_with_the_same_weights():
    net, x = nn.Sequential(_layer(), nn.ReLU(), nn.Conv2d(4, 4, 3)), X.clone().requires_grad_()
    expected = torch.autograd.grad(net(x).square().sum(), [x, *net.parameters()])
    with hubel.enabled() as log:
        y = checkpoint(net, x, use_reentrant=False)
        assert isinstance(y, Tensor)
        found = torch.autograd.grad(y.square().sum(), [x, *net.parameters()])
    assert log.fallback == 0
    assert log.native > 4, "nothing was computed again"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_copies_and_pickles_are_weights_of_their_own():
    net = _layer()
    _right(net)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        _right(other)
        with torch.no_grad():
            other.weight.add_(1)
        _right(other)
        _right(net)
    assert vars(net.weight) == {}

    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True).keys() == {"weight", "bias"}


def test_threads_share_a_weight_that_a_writer_changes():
    """Between two writes every thread must see the newer weight: a constant input makes the output tell which."""
    net = nn.Conv2d(1, 8, 3, bias=False)
    x = torch.ones(1, 1, 3, 3)
    failures: list[str] = []
    go, done = threading.Barrier(4), threading.Barrier(4)

    def read() -> None:
        for value in range(20):
            go.wait()
            with torch.no_grad():
                found = net(x).flatten()
            if not torch.equal(found, torch.full((8,), 9.0 * value)):
                failures.append(f"{value}: {found}")
            done.wait()

    readers = [threading.Thread(target=read) for _ in range(3)]
    with hubel.enabled():
        for reader in readers:
            reader.start()
        for value in range(20):
            net.weight.data.fill_(value)
            go.wait()
            done.wait()
        for reader in readers:
            reader.join()
    assert not failures


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (6, 1, 5, 5), (64, 64, 3, 3), (512, 16, 1, 1), (5000, 1, 1, 1), (2000, 4, 1, 1)]
)
def test_the_sample_spreads_over_all_of_the_memory(shape):
    w = torch.empty(shape)
    places, row = _places(w), w[0].numel()
    if w.numel() <= 4096:
        assert len(places) == w.numel()
    elif shape[0] <= 512:
        assert {place // row for place in places} == {*range(shape[0])}, "a kernel without a sampled value"
        assert len({place % row for place in places}) > 1 or row == 1
    assert len(places) <= 4096
    assert max(places) >= 0.9 * w.numel() - 1
