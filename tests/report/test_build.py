"""hubel.report on networks of all sorts: what is looked at, and what is told when it cannot be."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hubel.inspect
import hubel.report
from hubel import lab
from hubel.errors import DataError, HubelError, ModelError, UnknownNameError
from hubel.inspect import Snapshots, layers_of
from hubel.records import Document
from hubel.report import build
from hubel.report.page import page
from hubel.report.sections.summary import spoken

from .conftest import bars
from .test_page import Reader


def colour_net(classes: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 40, 7, 2, 3, bias=False), nn.BatchNorm2d(40), nn.ReLU(inplace=True)]
    body += [nn.Conv2d(40, 40, 3, groups=40), nn.Conv2d(40, 8, 1), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))


def ids(document: Document) -> list[str]:
    return [record.id for record in document.records if record.status == "ok"]


def test_without_data_there_are_kernels(tmp_path: Path) -> None:
    out = hubel.report(colour_net(), out=tmp_path / "report.html")  # type: ignore[operator]
    reader = Reader(out.read_text(encoding="utf-8"))
    assert "no image is inside this file" in reader.text
    assert "drawn in colour" in reader.text, "a first layer that reads colour is shown in it"
    assert {"#0", "#3", "#4", "#0:39"} <= {a.get("href") for a in reader.all("a")}, "layers and kernels have pages"


def test_with_images_there_are_maps_scores_and_one_number() -> None:
    document = build(colour_net(), torch.rand(3, 3, 32, 32), name="mine", weights="random")
    assert {"kernels", "feature_maps", "one_number", "top_patches", "dead_kernels", "images"} <= set(ids(document))
    reader = Reader(page(document))
    assert "3 images of the data are inside this file" in reader.text
    assert spoken(document)[0].startswith("Its weights are random: nothing here has been learned yet.")
    assert "Feature map 4:0" in " ".join(a["alt"] for a in reader.all("img"))
    skipped = document.record("ablation")
    assert skipped.status == "not_applicable" and "88 kernels" in (skipped.reason or "")


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Conv1d(2, 3, 5), nn.ReLU(), nn.ConvTranspose1d(3, 2, 4)),
        nn.Sequential(nn.Conv3d(1, 2, 3), nn.ConvTranspose3d(2, 2, 2)),
        nn.Sequential(nn.ConvTranspose2d(3, 5, 3), nn.Conv2d(5, 2, (1, 9)), nn.Conv2d(2, 2, 1)),
    ],
)
def test_kernels_of_any_dimension_are_drawn(net: nn.Module) -> None:
    document = build(net)
    first, *_ = layers_of(net).values()
    reader = Reader(page(document))
    assert sum(a["alt"].startswith("Kernel ") for a in reader.all("img")) >= first.kernels
    packed = json.loads(reader.scripts[0])["layers"]
    assert [(layer["address"], layer["kernels"]) for layer in packed] == [
        (address, layer.kernels) for address, layer in layers_of(net).items()
    ]
    for layer in packed:
        weights = np.frombuffer(base64.b64decode(layer["weights"]), np.int8)
        assert weights.size == layer["kernels"] * layer["shown"] * math.prod(layer["size"])


def test_many_layers_stay_small() -> None:
    layers = [layer for _ in range(20) for layer in (nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())]
    net = nn.Sequential(nn.Conv2d(3, 64, 3), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    document = build(net, torch.rand(2, 3, 24, 24), weights="random")
    assert len(page(document)) < 2_500_000
    assert len(Reader(page(document)).elements) < 4000, "kernels are drawn when they are asked for"


def test_labels_that_answers_follow_are_used() -> None:
    data = bars()
    assert data.labels is not None
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveMaxPool2d((3, 1)), nn.Flatten(), nn.Linear(9, 3))
    optimizer = torch.optim.Adam(net.parameters(), 0.03)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(data.images), data.labels).backward()
        optimizer.step()
    document = build(net, data)
    assert {"accuracy", "classes", "feature_maps", "one_number", "taylor", "ablation", "ablation_scores"} <= {
        *ids(document)
    }
    text = Reader(page(document)).text
    assert "One that it gets right" in text and "that it had never seen" not in text


def test_labels_that_answers_do_not_follow_are_withheld() -> None:
    images, labels = torch.rand(40, 3, 16, 16), torch.arange(40) % 4
    document = build(colour_net(), (images, labels))
    assert "accuracy" not in ids(document) and "classes" not in ids(document)
    record = next(r for r in document.records if r.id == "accuracy")
    assert "may not be aligned" in (record.reason or "") and "withheld" in (record.reason or "")
    assert "One that it gets right" not in Reader(page(document)).text


def test_the_images_shown_are_spread_over_the_sample() -> None:
    images = torch.rand(7, 3, 32, 32)
    record = build(colour_net(), images, only=["feature_maps"], weights="random").record("feature_maps")
    assert torch.equal(torch.from_numpy(record.arrays["image"].data), images[[0, 4]])


def test_only_is_a_list_of_analyses() -> None:
    assert ids(build(colour_net(), torch.rand(1, 3, 32, 32), only=["feature_maps"])) == ["feature_maps"]
    with pytest.raises(UnknownNameError, match='unknown analysis "kernel".*Did you mean "kernels"'):
        build(colour_net(), only=["kernel"])


def test_the_picture_shown_is_the_one_before_preprocessing() -> None:
    images = torch.rand(1, 3, 32, 32)
    record = build(colour_net(), images, preprocess="imagenet").record("feature_maps")
    assert torch.equal(torch.from_numpy(record.arrays["image"].data), images)
    deviation = record.arrays["input"].data[0, 0] * 0.229 + 0.485 - images[0, 0].numpy()
    assert abs(deviation).max() < 1e-5


def test_without_pictures_no_image_and_no_map_is_kept() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    document = build(net, torch.rand(5, 1, 9, 9), pictures=False)
    assert {"kernels", "top_patches", "ablation"} <= set(ids(document))
    assert not {"images", "feature_maps", "attribution", "ablation_scores"} & set(ids(document))
    assert "no image is inside this file" in Reader(page(document)).text


def test_blurred_images_are_the_only_ones_inside() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    stripes = (torch.arange(32) % 2).float().expand(5, 3, 32, 32)
    document = build(net, stripes, blur=True)
    assert not {"feature_maps", "one_number", "attribution", "ablation_scores"} & set(ids(document))
    assert {"top_patches", "ablation", "contributions"} & set(ids(document)) == {"top_patches", "ablation"}
    inside = document.record("images").arrays["images"].data
    assert inside.shape == (5, 32, 32, 3) and inside[:, 4:-4, 4:-4].std() < 0.2 * stripes.numpy().std() * 255
    assert "5 images of the data are inside this file, blurred" in Reader(page(document)).text
    sharp = build(net, stripes, only=["top_patches"])
    assert sharp.record("top_patches").rows == document.record("top_patches").rows


def test_refusals() -> None:
    with pytest.raises(ModelError, match=r"about a torch\.nn\.Module\. Received: str"):
        build("lenet5")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="Received: Linear, which has none"):
        build(nn.Linear(2, 2))
    with pytest.raises(ModelError, match=r"tells the run: .*Received: a run with --blur"):
        build(object.__new__(lab.TrainingRun), blur=True)
    with pytest.raises(DataError, match=r"shape that the network takes"):
        build(colour_net(), torch.rand(2, 1, 32, 32))
    with pytest.raises(HubelError, match="preprocessing is for 3 channels"):
        build(nn.Conv2d(1, 1, 1), torch.rand(2, 1, 8, 8), preprocess="imagenet")
    with pytest.raises(UnknownNameError, match='unknown preprocessing "imagnet"'):
        build(colour_net(), torch.rand(2, 3, 8, 8), preprocess="imagnet")


def test_a_document_has_what_check_concludes() -> None:
    net = colour_net()
    with torch.no_grad():
        net[0].weight[5] = 0  # type: ignore[index]
    document = build(net, only=["kernels", "dead_kernels"])
    (found,) = [finding for finding in document.findings if finding.code == "HB101"]
    assert found.targets == ["0:5"]
    reader = Reader(page(document))
    assert "#0:5" in [a.get("href") for a in reader.all("a")] and found.message in reader.text


def test_a_time_budget_says_how_to_get_the_rest() -> None:
    document = build(
        colour_net(), torch.rand(2, 3, 32, 32), only=["kernels", "dead_kernels"], time_budget=0, keep=False
    )
    late = document.record("dead_kernels")
    assert late.status == "insufficient_data" and "--only dead_kernels" in (late.reason or "")


def test_an_interrupt_keeps_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(hubel.inspect.ANALYSES, "dead_kernels", stop)
    document = build(colour_net(), torch.rand(2, 3, 32, 32), only=["kernels", "dead_kernels"], keep=False)
    assert document.status == "interrupted" and ids(document) == ["kernels"]
    assert "was interrupted" in " ".join(spoken(document))


def test_snapshots_of_a_training_are_drawn() -> None:
    net = colour_net()
    snapshots = Snapshots(net, every=1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.rand(2, 3, 32, 32)).square().sum().backward()
        optimizer.step()
        snapshots()
    reader = Reader(page(build(net, snapshots=snapshots)))
    assert "While it was trained" in reader.text
    assert any("at step" in a["alt"] for a in reader.all("img"))
