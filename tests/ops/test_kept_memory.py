"""Memory of a training graph's large results: used again from step to step, never while somebody holds it."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hubel.ops.kept_memory import KeptMemory, SharedMemory, serving
from hubel.ops.results import room

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def dense(memory: KeptMemory, *shape: int) -> Tensor:
    return memory.empty(shape, torch.empty(shape, device="meta").stride())


def test_memory_is_used_again_once_nobody_holds_it() -> None:
    memory = KeptMemory()
    one, other = dense(memory, 3, 50), dense(memory, 150)
    view = one[1]
    places = one.data_ptr(), other.data_ptr()
    assert places[0] % 64 == places[1] % 64 == 0 and places[0] != places[1]
    del one
    assert dense(memory, 150).data_ptr() not in places  # the view still needs it
    del view, other
    again = [dense(memory, 50, 3) for _ in range(3)]
    assert set(places) <= {tensor.data_ptr() for tensor in again}
    assert dense(memory, 7).data_ptr() not in places


@pytest.mark.parametrize("hold", [Tensor.numpy, Tensor.untyped_storage, torch.to_dlpack, Tensor.detach])
def test_whatever_refers_to_it_keeps_it(hold: Any) -> None:
    memory = KeptMemory()
    tensor = dense(memory, 100)
    place, held = tensor.data_ptr(), hold(tensor)
    del tensor
    assert dense(memory, 100).data_ptr() != place
    del held
    gc.collect()
    assert place in {t.data_ptr() for t in [dense(memory, 100) for _ in range(2)]}


def test_a_tensor_that_moved_into_shared_memory_is_not_written_over() -> None:
    memory = KeptMemory()
    tensor = dense(memory, 100).fill_(1.0).share_memory_()
    others = [dense(memory, 100).fill_(2.0) for _ in range(3)]
    assert (tensor == 1).all() and len(others) == 3


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 4, 5), (2, 1, 1, 5), (2, 3, 1, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_tensors_lie_as_asked(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    like = torch.empty(shape, memory_format=layout)
    tensor = KeptMemory().empty(shape, like.stride())
    assert tensor.shape == like.shape and tensor.stride() == like.stride() and tensor.dtype == torch.float32
    assert tensor.copy_(torch.arange(like.numel()).view(shape)).flatten().tolist() == list(range(like.numel()))


def test_tensors_outlive_their_memorys_owner() -> None:
    memory = KeptMemory()
    tensor, gone = dense(memory, 1000).fill_(3.0), weakref.ref(memory)
    del memory
    gc.collect()
    assert gone() is None and (tensor == 3).all()
    del tensor
    gc.collect()


def test_what_no_run_needs_is_given_back() -> None:
    memory, blocks = KeptMemory(), []

    def step(*shapes: tuple[int, ...]) -> None:
        tensors = [dense(memory, *shape) for shape in shapes]
        blocks.extend(weakref.ref(block) for _, block in memory._free[28000])
        del tensors

    run = memory.served(step)
    run((7000,), (100,))
    assert len(memory._free[28000]) == 1
    for _ in range(4):
        run((100,))
        assert len(memory._free[28000]) == 1
    run((100,))
    assert not memory._free[28000] and len(memory._free[400]) == 1
    gc.collect()
    assert blocks and all(block() is None for block in blocks)


def test_layers_share_no_more_memory_than_allowed() -> None:
    memory = SharedMemory(10_000)
    tensors = [dense(memory, 1000) for _ in range(4)]
    places = {t.data_ptr() for t in tensors}
    assert memory.kept() == 0
    del tensors
    assert memory.kept() == 8000
    again = [dense(memory, 1000) for _ in range(2)]
    assert {t.data_ptr() for t in again} <= places and memory.kept() == 0
    del again
    dense(memory, 10)
    assert memory.kept() == 8040
    # A thousand results later, none of that size, and one of another that was not there.
    for _ in range(1100):
        dense(memory, 10)
    dense(memory, 20)
    assert memory.kept() == 120
    memory.clear()
    assert memory.kept() == 0


def test_only_the_function_that_is_served_finds_it() -> None:
    memory, found = KeptMemory(), []
    run = memory.served(lambda: found.append(serving()))

    def elsewhere() -> None:
        thread = threading.Thread(target=lambda: found.append(serving()))
        thread.start()
        thread.join()

    run()
    KeptMemory().served(lambda: (run(), memory.served(elsewhere)()))()
    assert found == [memory, memory, None] and serving() is None
    with pytest.raises(ZeroDivisionError):
        memory.served(lambda: 1 / 0)()
    assert serving() is None


def test_threads_share_it() -> None:
    memory, wrong = KeptMemory(), []

    def work(number: int) -> None:
        for _ in range(300):
            tensors = [dense(memory, 64).fill_(number) for _ in range(3)]
            wrong.extend(t for t in tensors if not (t == number).all())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64)
        self.hidden = nn.Linear(64 * 36, 1024)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        return self.hidden(torch.nn.functional.adaptive_avg_pool2d(y, 6).flatten(1))


def gradients(run: Any, net: nn.Module, x: Tensor) -> list[Tensor]:
    net.zero_grad()
    run(x).square().mean().backward()
    return [p.grad for p in net.parameters() if p.grad is not None]


def test_gradients_take_the_memory_that_the_last_ones_left() -> None:
    torch._dynamo.reset()
    net, x = Net(), torch.randn(4, 3, 32, 32)
    compiled = torch.compile(net, backend="hubel", fullgraph=True)
    for _ in range(2):
        gradients(compiled, net, x)  # the first step's memory goes back when the second runs in segments
    weight = net.hidden.weight
    assert weight.grad is not None and weight.grad.nbytes >= 2**18
    first = weight.grad.data_ptr()
    gradients(compiled, net, x)
    assert weight.grad.data_ptr() == first
    held = weight.grad
    before = held.clone()
    gradients(compiled, net, 2 * x)
    assert weight.grad.data_ptr() != first and torch.equal(held, before)
    torch._dynamo.reset()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_steps_of_changing_sizes_agree_with_torch(layout: Any) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = Net()
    net.to(memory_format=layout)  # type: ignore[call-overload]
    twin = copy.deepcopy(net)
    compiled = torch.compile(net, backend="hubel", fullgraph=True, dynamic=True)
    for batch, size in ((4, 32), (4, 32), (7, 24), (4, 32), (7, 24), (2, 48), (2, 48)):
        x = torch.randn(batch, 3, size, size).to(memory_format=layout)
        for ours, theirs in zip(gradients(compiled, net, x), gradients(twin, twin, x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    for ours, theirs in zip(net.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch._dynamo.reset()


def test_two_steps_at_once_agree_with_one_after_the_other() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(4, 3, 32, 32)
    compiled = torch.compile(net, backend="hubel", fullgraph=True)
    inputs = [x * (i + 1) for i in range(2)]

    def step(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(compiled(x).square().mean(), x)
        return gradient

    expected, found, errors = [step(x) for x in inputs], {}, []

    def work(i: int) -> None:
        try:
            for _ in range(10):
                found[i] = step(inputs[i])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(torch.equal(found[i], expected[i]) for i in range(2))
    torch._dynamo.reset()


def test_what_else_than_float32_is_allocated_anew() -> None:
    memory = KeptMemory()
    allocate = room((300, 300), (300, 1), torch.bfloat16)
    tensor = memory.served(allocate)()
    assert tensor.dtype == torch.bfloat16 and not memory._free
    assert memory.served(room((300, 300), (300, 1), torch.float32))().dtype == torch.float32
    assert np.sum([len(blocks) for blocks in memory._free.values()]) == 1
