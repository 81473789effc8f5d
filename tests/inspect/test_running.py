"""Running a network: what it answers, and what is said when it cannot."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hubel import inspect
from hubel.errors import DataError, UnknownNameError
from hubel.inspect.replay import Replay, recorded
from hubel.inspect.running import scores, scores_of
from tests.inspect.nets import NETS, Residual, build, same_state, state_of


def test_scores_are_found_in_what_the_network_returns() -> None:
    rows, maps = torch.randn(2, 3), torch.randn(2, 3, 4, 4)
    assert torch.equal(scores_of(rows, 2), rows)
    assert torch.equal(scores_of({"maps": maps, "rows": rows}, 2), rows)
    assert torch.equal(scores_of((maps, rows), 2, output=1), rows)
    with pytest.raises(
        DataError, match=r"needs output=, to say where its scores are\. Received: none, and it returns a"
    ):
        scores_of({"a": rows, "b": rows}, 2)
    with pytest.raises(UnknownNameError, match='unknown output "row". Did you mean "rows"?'):
        scores_of({"rows": rows}, 2, output="row")
    with pytest.raises(DataError, match=r"one row an image\. Received: scores of shape \(2, 3, 4, 4\) for 2 images"):
        scores_of(maps, 2)


def test_several_inputs_are_told_how_to_become_one() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x * mask

    with pytest.raises(
        DataError, match=r"takes one input, the images\. Received: Two, which answered: .*'mask'\. Pass a mo"
    ):
        inspect.sweep(Two(), torch.zeros(1, 3, 4, 4))


def test_grey_images_for_a_colour_network_are_told_how_to_become_colour() -> None:
    with pytest.raises(DataError, match=r"Received: \(1, 1, 8, 8\).*Grey images become colour with channels=3"):
        inspect.sweep(build("plain"), torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize("name", NETS)
def test_a_replay_gives_the_same_bits_and_runs_only_what_comes_after(name: str) -> None:
    net, x = build(name).eval(), torch.randn(4, 3, 12, 12)
    before = state_of(net)
    whole = scores(net, x)
    replay = Replay(net, x)
    for address in [call for call in replay.began if call]:
        with replay.before(address):
            assert torch.equal(scores(net, x), whole)
    assert same_state(before, state_of(net))


def test_a_replay_sees_a_change_and_skips_what_lies_before_it() -> None:
    torch.manual_seed(0)
    net, x = Residual().eval(), torch.randn(4, 3, 12, 12)
    ran: list[str] = []
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            inner = module._conv_forward
            module._conv_forward = lambda *a, name=name, inner=inner: ran.append(name) or inner(*a)  # type: ignore[method-assign]
    with inspect.without(net, "conv2:1"):
        expected = net(x)
    replay = Replay(net, x)
    ran.clear()
    with replay.before("conv2"), inspect.without(net, "conv2:1"):
        assert torch.equal(net(x), expected)
    assert ran == ["conv2"]
    batches = [replay.images for replay in recorded(net, x)]
    assert torch.equal(torch.cat(batches), x)
    assert torch.equal(replay.answer, net(x))


def test_an_error_inside_a_replay_puts_forward_back() -> None:
    net = Residual()
    replay = Replay(net, torch.zeros(1, 3, 8, 8))
    before = state_of(net)
    with pytest.raises(ValueError, match="inside"), replay.before("conv2"):
        raise ValueError("inside")
    assert same_state(before, state_of(net))
