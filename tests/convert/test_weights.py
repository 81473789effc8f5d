"""State dicts: what is read, what is refused, and what the messages say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hubel.convert.weights import compare, load_into, read_state_dict
from hubel.errors import ModelError


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


class Touch:
    """Pickled, it asks the reader to create a file: what a malicious checkpoint would do, harmlessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_what_was_saved_is_read(tmp_path: Path, suffix: str) -> None:
    state = network().state_dict()
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    read = read_state_dict(path)
    assert set(read) == set(state)
    assert all(torch.equal(read[key], state[key]) for key in state)


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_wrappers_and_prefixes_of_training_scripts_come_off(tmp_path: Path, wrapper: str, prefix: str) -> None:
    state = network().state_dict()
    wrapped = {wrapper: {prefix + key: tensor for key, tensor in state.items()}, "epoch": 3}
    torch.save(wrapped, tmp_path / "checkpoint.pth")
    assert set(read_state_dict(tmp_path / "checkpoint.pth")) == set(state)


def test_a_pickle_that_would_run_code_is_refused_unopened(tmp_path: Path) -> None:
    target = tmp_path / "made-by-the-pickle"
    torch.save({"weight": Touch(target)}, tmp_path / "bad.pth")
    with pytest.raises(ModelError, match="hold tensors only.*bad.pth.*safetensors"):
        read_state_dict(tmp_path / "bad.pth")
    assert not target.exists()


@pytest.mark.parametrize("name", ["noise.safetensors", "noise.pth", "empty.pth", "empty.safetensors"])
def test_a_damaged_file_is_one_clear_message(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"" if "empty" in name else bytes(range(200)))
    with pytest.raises(ModelError, match=f"{name} must be .*cannot be read"):
        read_state_dict(tmp_path / name)


def test_a_truncated_file_is_one_clear_message(tmp_path: Path) -> None:
    for path, save in ((tmp_path / "w.safetensors", save_file), (tmp_path / "w.pth", torch.save)):
        save(network().state_dict(), path)
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(ModelError, match="cannot be read"):
            read_state_dict(path)


def test_files_that_are_not_there_or_are_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Received: .*none\.pth \(No such file or directory\)"):
        read_state_dict(tmp_path / "none.pth")
    with pytest.raises(ModelError, match="that is a folder"):
        read_state_dict(tmp_path)
    (tmp_path / "weights.h5").touch()
    with pytest.raises(ModelError, match=r"read from \.safetensors, \.pth.*weights\.h5"):
        read_state_dict(tmp_path / "weights.h5")


def test_content_that_is_no_state_dict(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(ModelError, match="must hold a state dict.*tensor.pth, which holds Tensor"):
        read_state_dict(tmp_path / "tensor.pth")


def test_a_mismatch_names_the_keys_of_each_kind() -> None:
    state = network().state_dict()
    state["extra"] = state.pop("1.bias")
    state["0.weight"] = torch.zeros(2, 1, 5, 5)
    mismatch = compare(network(), state)
    assert mismatch.missing == ("1.bias",)
    assert mismatch.unexpected == ("extra",)
    assert mismatch.misshapen == (("0.weight", (2, 1, 5, 5), (2, 1, 3, 3)),)
    with pytest.raises(ModelError) as caught:
        load_into(network(), state, name="tiny", source="there.pth")
    message = str(caught.value)
    assert "missing: 1.bias" in message and "unexpected: extra" in message
    assert "misshapen: 0.weight [2, 1, 5, 5] where the network has [2, 1, 3, 3]" in message
    assert "the network tiny" in message and "there.pth" in message


def test_a_counter_that_old_checkpoints_lack_is_no_mismatch() -> None:
    state = network().state_dict()
    del state["1.num_batches_tracked"]
    assert not compare(network(), state)


def test_loading_copies_every_value() -> None:
    source, target = network(), network()
    load_into(target, source.state_dict(), name="tiny", source="memory")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_long_lists_of_keys_are_counted() -> None:
    mismatch = compare(nn.Sequential(*[nn.Conv2d(1, 1, 1) for _ in range(5)]), {})
    assert len(mismatch) == 10
    assert str(mismatch) == "missing: 0.weight, 0.bias, 1.weight, 1.bias and 6 more"
