"""Pictures show the numbers: decoded by someone else's reader, and checked pixel by pixel."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from hubel.report import pictures
from hubel.report.pictures import NEGATIVE, POSITIVE, Picture


def pixels(picture: Picture) -> np.ndarray:
    """(H, W, 4) as Pillow reads the data URI."""
    head, _, body = picture.uri.partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    image = Image.open(io.BytesIO(base64.b64decode(body)))
    assert image.size == (picture.width, picture.height)
    return np.array(image.convert("RGBA"))


def test_zero_is_paper_and_the_ends_are_the_two_colours() -> None:
    got = pixels(pictures.signed(np.array([[0.0, 2.0, -2.0, 1.0]]), 2.0, cell=1))
    assert got[0, 0, 3] == 0
    assert tuple(got[0, 1]) == (*POSITIVE, 255)
    assert tuple(got[0, 2]) == (*NEGATIVE, 255)
    assert tuple(got[0, 3]) == (*POSITIVE, 127)


def test_strength_grows_with_the_number_and_never_changes_hue() -> None:
    ramp = np.linspace(-1, 1, 41)
    got = pixels(pictures.signed(ramp[None], 1.0, cell=1)).astype(int)[0]
    assert (np.diff(got[20:, 3]) > 0).all() and (np.diff(got[:21, 3]) < 0).all()
    assert (got[21:, :3] == POSITIVE).all() and (got[:20, :3] == NEGATIVE).all()


def test_negative_cells_carry_a_minus_so_that_no_sign_is_colour_alone() -> None:
    got = pixels(pictures.signed(np.array([[-1.0, 1.0, -0.3, -0.01]]), 1.0, cell=12))
    cells = [got[:, 12 * i : 12 * i + 12].reshape(-1, 4) for i in range(4)]
    colours = [len(np.unique(cell, axis=0)) for cell in cells]
    assert colours == [2, 1, 2, 1], "a mark in the negative cells that are more than faint, in no other"
    middle = got[6]
    assert tuple(middle[6, :3]) == (255, 255, 255), "light on a strong cell"
    assert tuple(middle[24 + 6, :3]) == NEGATIVE and middle[24 + 6, 3] > 200, "dark on a faint one"


def test_several_planes_stand_in_columns_each_in_a_frame() -> None:
    picture = pictures.signed(np.ones((3, 2, 2)), 1.0, cell=4, columns=2)
    # A tile: 2·4 cells and a frame of 1 on each side = 10; two and a gap of 2 between them.
    assert (picture.width, picture.height) == (22, 22)
    got = pixels(picture)
    assert tuple(got[5, 5, :3]) == POSITIVE
    assert got[10:12, :, 3].max() == 0, "the gap"
    assert got[12:, 12:, 3].max() == 0, "no fourth plane"
    assert 0 < got[0, 0, 3] < 128, "the frame"


def test_a_number_that_is_missing_is_empty() -> None:
    got = pixels(pictures.signed(np.array([[np.nan, 1.0]]), 1.0, cell=1))
    assert got[0, 0, 3] == 0 and got[0, 1, 3] == 255


def test_ink_is_black_with_paper_showing_through() -> None:
    got = pixels(pictures.ink(np.array([[0.0, 0.5, 1.0, 2.0]]), 0.0, 1.0))
    assert (got[0, :, :3] == 0).all()
    assert got[0, :, 3].tolist() == [0, 128, 255, 255]


def test_colour_is_exact() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 5, 7)) / 255
    got = pixels(pictures.colour(image, 0.0, 1.0))
    assert np.array_equal(got[..., :3], np.round(image * 255).transpose(1, 2, 0))


def test_a_photograph_carries_pixels_and_nothing_else() -> None:
    smooth = np.linspace(0, 1, 3 * 64 * 64).reshape(3, 64, 64)
    picture = pictures.photo(smooth, 0.0, 1.0)
    image = Image.open(io.BytesIO(base64.b64decode(picture.uri.partition(",")[2])))
    assert not image.getexif() and set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    assert np.abs(pixels(picture)[..., :3] / 255 - smooth.transpose(1, 2, 0)).max() < 0.05


@pytest.mark.parametrize("shape", [(3, 100, 60), (1, 28, 28), (2, 300, 1)])
def test_shrinking_averages_blocks(shape: tuple[int, int, int]) -> None:
    x = np.random.default_rng(0).normal(size=shape)
    got = pictures.shrink(x, 40)
    assert max(got.shape[-2:]) <= 40
    step = -(-max(shape[1:]) // 40)
    if step > 1 and min(shape[1:]) >= step:
        assert got[0, 0, 0] == pytest.approx(x[0, :step, :step].mean())
