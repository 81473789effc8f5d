"""MODEL in each of its forms, and what is said when there is none."""

from __future__ import annotations

import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hubel.convert.models import RUN_WEIGHTS, resolve
from hubel.errors import ModelError, UnknownNameError
from hubel.inspect import watch
from hubel.records import DOCUMENT_FILE
from tests.convert.test_weights import Touch


class Tiny(nn.Module):
    def __init__(self, num_classes: int = 10, in_channels: int = 1, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).mean((2, 3)))


def build(width: int, num_classes=None, in_channels=None, seed=None) -> nn.Module:
    if seed is not None:
        torch.manual_seed(seed)
    return Tiny(num_classes or 10, in_channels or 1, width)


NETWORKS = {"tiny": partial(build, 4), "wide": partial(build, 8)}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's own, importable from the working directory only; its name."""
    name = f"users_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def drawn(): return nn.Conv2d(1, 2, 3)\n"
        "def fixed():\n    net = nn.Conv2d(1, 2, 3)\n"
        "    nn.init.ones_(net.weight); nn.init.zeros_(net.bias)\n"
        "    return net\n"
        "def needy(width): return nn.Conv2d(1, width, 3)\n"
        "def wrong(): return [1]\n"
        "net = nn.Conv2d(1, 2, 3)\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    return name


def test_a_name_of_the_zoo() -> None:
    loaded = resolve("tiny", networks=NETWORKS, seed=1)
    assert (loaded.name, loaded.arch, loaded.weights, loaded.sha256) == ("tiny", "tiny", "random", None)
    assert not loaded.network.training
    assert str(loaded) == "tiny, 90 parameters, random weights"
    again = resolve("tiny", networks=NETWORKS, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(loaded.network.parameters(), again.network.parameters(), strict=True))


def test_an_unknown_name_offers_near_ones() -> None:
    with pytest.raises(UnknownNameError, match='unknown network "tyny". Did you mean "tiny"'):
        resolve("tyny", networks=NETWORKS)


@pytest.mark.parametrize(("num_classes", "in_channels"), [(10, 1), (7, 1), (10, 3), (7, 3)])
def test_a_state_dict_tells_its_classes_and_channels(tmp_path: Path, num_classes: int, in_channels: int) -> None:
    saved = Tiny(num_classes, in_channels)
    path = tmp_path / "weights.safetensors"
    save_file(saved.state_dict(), path)
    for loaded in (
        resolve(str(path), networks=NETWORKS, arch="tiny"),
        resolve("tiny", networks=NETWORKS, weights=path),
    ):
        assert loaded.weights == "file" and loaded.source == path and len(loaded.sha256 or "") == 64
        x = torch.ones(2, in_channels, 8, 8)
        assert torch.equal(loaded.network(x), saved.eval()(x))


def test_a_state_dict_without_its_network_says_which_it_fits(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(Tiny(width=8).state_dict(), path)
    with pytest.raises(ModelError, match="the network must be named.*Add --arch wide"):
        resolve(str(path), networks=NETWORKS)


def test_the_wrong_architecture_names_the_right_one_and_the_keys(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(Tiny(width=8).state_dict(), path)
    with pytest.raises(ModelError) as caught:
        resolve(str(path), networks=NETWORKS, arch="tiny")
    message = str(caught.value)
    assert "misshapen: conv.weight [8, 1, 3, 3] where the network has [4, 1, 3, 3]" in message
    assert "They fit wide: use --arch wide" in message
    with pytest.raises(UnknownNameError, match='unknown network "tinny"'):
        resolve(str(path), networks=NETWORKS, arch="tinny")


def test_weights_that_fit_nothing_name_the_nearest_network(tmp_path: Path) -> None:
    state = Tiny(width=8).state_dict()
    state["extra"] = torch.zeros(3)
    save_file(state, tmp_path / "weights.safetensors")
    for arch in ("tiny", "wide"):
        with pytest.raises(ModelError) as caught:
            resolve(str(tmp_path / "weights.safetensors"), networks=NETWORKS, arch=arch)
        assert (
            "The nearest network of the zoo is wide, with 4 of whose 4 tensors they agree in name and shape. Name "
            in str(caught.value)
        )
        assert "unexpected: extra" in str(caught.value)
    with pytest.raises(
        ModelError, match="must be named.*nearest network of the zoo is wide.*Add --arch NAME; `hubel zoo`"
    ):
        resolve(str(tmp_path / "weights.safetensors"), networks=NETWORKS)
    save_file({"other": torch.zeros(3)}, tmp_path / "strange.safetensors")
    with pytest.raises(ModelError, match="strange.safetensors alone. Add --arch NAME"):
        resolve(str(tmp_path / "strange.safetensors"), networks=NETWORKS)


def test_a_factory_of_the_users_own_module(module: str) -> None:
    drawn = resolve(f"{module}:drawn", networks=NETWORKS)
    assert drawn.weights == "random" and drawn.arch is None and not drawn.network.training
    assert resolve(f"{module}:fixed", networks=NETWORKS).weights == "file"
    assert isinstance(resolve(f"{module}:net", networks=NETWORKS).network, nn.Conv2d)


def test_weights_for_a_factory(module: str, tmp_path: Path) -> None:
    state = {"weight": torch.full((2, 1, 3, 3), 0.5), "bias": torch.ones(2)}
    save_file(state, tmp_path / "own.safetensors")
    loaded = resolve(f"{module}:drawn", networks=NETWORKS, weights=tmp_path / "own.safetensors")
    assert loaded.weights == "file" and torch.equal(loaded.network.state_dict()["weight"], state["weight"])


def test_factories_that_give_no_network(module: str) -> None:
    with pytest.raises(ModelError, match="missing 1 required positional argument.*Give every argument a"):
        resolve(f"{module}:needy", networks=NETWORKS)
    with pytest.raises(ModelError, match=r"must return a torch\.nn\.Module.*list"):
        resolve(f"{module}:wrong", networks=NETWORKS)
    with pytest.raises(ModelError, match="must name a callable or a network.*int"):
        resolve(f"{module}:number", networks=NETWORKS)
    with pytest.raises(UnknownNameError, match='Did you mean "drawn"'):
        resolve(f"{module}:drwn", networks=NETWORKS)
    with pytest.raises(ModelError, match="must name a module that can be imported.*no_such_package"):
        resolve("no_such_package.models:net", networks=NETWORKS)


def export(
    path: Path, net: nn.Module | None = None, shape: tuple[int, ...] = (2, 1, 8, 8), batch: object = None
) -> nn.Module:
    net = (net or Tiny()).eval()
    sizes = None if batch is None else ({0: batch},)
    torch.export.save(torch.export.export(net, (torch.zeros(shape),), dynamic_shapes=sizes), path)
    return net


def test_an_exported_program(tmp_path: Path) -> None:
    net = export(tmp_path / "net.pt2")
    loaded = resolve(str(tmp_path / "net.pt2"), networks=NETWORKS)
    x = torch.randn(2, 1, 8, 8)
    assert loaded.weights == "file" and loaded.name == "net.pt2"
    assert (loaded.input_shape, loaded.batch) == ((1, 8, 8), 2)
    torch.testing.assert_close(loaded.network(x), net(x))


class Every(nn.Module):
    """One of each: strided, depthwise, padded by name, transposed, 1-D, used twice, and without a layer of its own."""

    edge: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.BatchNorm2d(8), nn.ReLU())
        self.depthwise = nn.Conv2d(8, 8, 3, padding="same", groups=8, bias=False)
        self.twice = nn.Conv2d(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 4, 3, stride=2, output_padding=1, dilation=2)
        self.line = nn.Conv1d(4, 2, 3)
        self.register_buffer("edge", torch.ones(4, 1, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.twice(nn.functional.silu(self.twice(self.depthwise(self.body(x)))))
        x = nn.functional.conv2d(self.up(x), self.edge, groups=4)
        return self.line(x.flatten(2))


def test_convolutions_of_an_exported_program_are_layers_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = export(tmp_path / "net.pt2", Every(), (2, 3, 12, 12), torch.export.Dim.AUTO)
    loaded = resolve(str(tmp_path / "net.pt2"), networks=NETWORKS)
    assert loaded.batch is None
    x = torch.randn(3, 3, 12, 12)
    torch.testing.assert_close(loaded.network(x), net(x), rtol=0, atol=0)
    layers = {name: repr(m) for name, m in loaded.network.named_modules() if isinstance(m, nn.modules.conv._ConvNd)}
    assert layers == {name: repr(m) for name, m in net.named_modules() if isinstance(m, nn.modules.conv._ConvNd)}
    with watch(loaded.network) as ours:
        loaded.network(x)
    with watch(net) as theirs:
        net(x)
    assert [(call.address, call.tap) for call in ours[:4]] == [(call.address, call.tap) for call in theirs[:4]]


def test_an_exported_program_that_is_damaged_or_none(tmp_path: Path) -> None:
    export(tmp_path / "net.pt2")
    (tmp_path / "cut.pt2").write_bytes((tmp_path / "net.pt2").read_bytes()[:1000])
    (tmp_path / "text.pt2").write_text("no archive")
    for name in ("cut.pt2", "text.pt2"):
        with pytest.raises(ModelError, match=f"must be an archive of torch.export.save.*{name}"):
            resolve(str(tmp_path / name), networks=NETWORKS)


def test_an_exported_program_never_unpickles_objects(tmp_path: Path) -> None:
    """torch.export.load itself falls back to weights_only=False for the example inputs: ours must not."""
    export(tmp_path / "net.pt2")
    target = tmp_path / "made-by-the-pickle"
    torch.save((Touch(target),), tmp_path / "evil")
    with zipfile.ZipFile(tmp_path / "net.pt2") as good, zipfile.ZipFile(tmp_path / "bad.pt2", "w") as bad:
        for entry in good.namelist():
            inputs = "sample_inputs" in entry
            bad.writestr(entry, (tmp_path / "evil").read_bytes() if inputs else good.read(entry))
    with pytest.raises(ModelError, match="must be an archive of torch.export.save"):
        resolve(str(tmp_path / "bad.pt2"), networks=NETWORKS)
    assert not target.exists()

    with zipfile.ZipFile(tmp_path / "net.pt2", "a") as archive:
        root = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{root}/data/constants/custom_obj_0", b"anything")
    with pytest.raises(ModelError, match="graph and tensors only.*custom_obj_0"):
        resolve(str(tmp_path / "net.pt2"), networks=NETWORKS)


def test_a_folder_that_is_no_run_and_files_of_other_kinds(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"with {DOCUMENT_FILE} and {RUN_WEIGHTS}"):
        resolve(str(tmp_path), networks=NETWORKS)
    with pytest.raises(ModelError, match=r"net\.onnx \(No such file"):
        resolve("net.onnx", networks=NETWORKS)
    with pytest.raises(ModelError, match="No such file"):
        resolve("nowhere/net", networks=NETWORKS)
    with pytest.raises(ModelError, match="No such file"):
        resolve("nowhere.safetensors", networks=NETWORKS)
    (tmp_path / "net.h5").touch()
    with pytest.raises(ModelError, match=r"MODEL files end in \.pt2"):
        resolve(str(tmp_path / "net.h5"), networks=NETWORKS)
