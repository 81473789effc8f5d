"""Arrays as small pictures: data URIs, mostly indexed PNG, readable on light and on dark paper.

One language of colour on the whole page: orange is positive, blue is negative, and nothing is nothing. Zero is
transparent, so that it is the paper in either theme, and strength is opacity. The two hues (Okabe and Ito's vermillion
and blue) differ for every kind of colour vision; where a sign matters, negative cells also carry a minus, so that no
sign is told by colour alone.
"""

from __future__ import annotations

import base64
import io
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

POSITIVE, NEGATIVE = (213, 94, 0), (0, 114, 178)
# The signed scale has so many steps on each side of zero: more than the eye tells apart, and a short palette. Behind it
# come the entries that gaps, frames and minus signs need.
_STEPS = 40
_ZERO, _LEVELS = _STEPS, 2 * _STEPS + 1
_CLEAR, _FRAME, _LIGHT_MARK, _DARK_MARK = range(_LEVELS, _LEVELS + 4)
_SIGNED = np.zeros((_LEVELS + 4, 4), np.uint8)
_SIGNED[:_ZERO, :3], _SIGNED[_ZERO + 1 : _LEVELS, :3] = NEGATIVE, POSITIVE
_SIGNED[:_LEVELS, 3] = np.abs(np.arange(_LEVELS) - _ZERO) / _STEPS * 255
_SIGNED[_FRAME], _SIGNED[_LIGHT_MARK], _SIGNED[_DARK_MARK] = (128, 132, 138, 90), (255, 255, 255, 225), (*NEGATIVE, 235)
_INK = np.zeros((256, 4), np.uint8)
_INK[:, 3] = np.arange(256)
# A minus is drawn from this share of the scale on; fainter cells are near zero to the eye anyway.
_MARK_FROM, _LIGHT_FROM = 0.1, 0.45
# WebP: up to this side lossless, else at this quality.
_LOSSLESS, _QUALITY = 64, 80
# Standard deviation of --blur, as a share of the image's longer side: 7 pixels of 224.
BLUR = 1 / 32


@dataclass(frozen=True)
class Picture:
    """A data URI and its size in its own pixels."""

    uri: str
    width: int
    height: int


def signed(
    planes: np.ndarray | Sequence[np.ndarray], limit: float, *, cell: int = 8, columns: int = 1, marks: bool = True
) -> Picture:
    """One plane (H, W), or several in `columns`, on the scale -limit..limit; each number is `cell` pixels wide."""
    stack = np.asarray(planes, np.float64)
    stack = stack[None] if stack.ndim == 2 else stack
    tiles = [_tile(plane, limit, cell, marks, framed=len(stack) > 1) for plane in stack]
    gap = max(1, cell // 2) if len(tiles) > 1 else 0
    height, width = tiles[0].shape
    rows = math.ceil(len(tiles) / columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), _CLEAR, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = tile
    return _picture(sheet, _SIGNED)


def ink(plane: np.ndarray, lo: float, hi: float) -> Picture:
    """A grey picture (H, W) as ink on paper: lo is paper, hi is black (white on dark paper, by the page's style)."""
    share = np.clip((np.asarray(plane, np.float64) - lo) / max(hi - lo, 1e-12), 0, 1)
    return _picture(np.round(share * 255).astype(np.uint8), _INK)


def colour(image: np.ndarray, lo: float, hi: float) -> Picture:
    """An RGB picture (3, H, W), exact to the pixel: for kernels. lo..hi is what the eye gets as 0..255."""
    pixels = _rgb(image, lo, hi)
    H, W, _ = pixels.shape
    return Picture(_uri("png", _png(pixels.reshape(H, -1), W, 2)), W, H)


def photo(image: np.ndarray, lo: float, hi: float) -> Picture:
    """An RGB picture (3, H, W) as a JPEG, a tenth of the bytes: for photographs. Nothing but pixels goes in."""
    pixels = _rgb(image, lo, hi)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=88)
    return Picture(_uri("jpeg", file.getvalue()), pixels.shape[1], pixels.shape[0])


def webp(pixels: np.ndarray) -> str:
    """The data URI of an image (H, W, C) uint8, C = 1 or 3: lossless where it is small, so that digits keep their dots.

    Nothing but pixels goes in: whatever the file said of camera, place and time was left behind when it was read.
    """
    file = io.BytesIO()
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    small = max(pixels.shape[:2]) <= _LOSSLESS
    image.save(file, "WEBP", quality=_QUALITY, lossless=small, method=4)
    return _uri("webp", file.getvalue())


def reduced(images: np.ndarray, most: int = 224) -> np.ndarray:
    """Images (N, C, H, W) as uint8 (N, H, W, C), C = 1 or 3, at most `most` wide and high: what a page carries.

    Numbers beyond 0..1, or below, are not pixels: then the whole range of all images is what the eye gets.
    """
    lo, hi = (0.0, 1.0) if images.min() >= 0 and images.max() <= 1 else (float(images.min()), float(images.max()))
    N, C, H, W = images.shape
    if C not in (1, 3):
        images = images.mean(1, keepdims=True)
    share = np.clip((images.astype(np.float32) - lo) / max(hi - lo, 1e-12), 0, 1)
    pixels = np.round(share * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    if max(H, W) <= most:
        return pixels
    scale = most / max(H, W)
    size = max(1, round(W * scale)), max(1, round(H * scale))
    small = [np.asarray(Image.fromarray(p.squeeze(-1) if p.shape[-1] == 1 else p).resize(size)) for p in pixels]
    return np.stack(small).reshape(N, size[1], size[0], -1)


def blurred(pixels: np.ndarray) -> np.ndarray:
    """Images (N, H, W, C) of `reduced`, each so soft that colours and large shapes are left, and no face or writing.

    Gaussian; its standard deviation is BLUR of the longer side, whatever the size.
    """
    soft = ImageFilter.GaussianBlur(BLUR * max(pixels.shape[1:3]))
    images = (Image.fromarray(p.squeeze(-1) if p.shape[-1] == 1 else p).filter(soft) for p in pixels)
    return np.stack([np.asarray(image) for image in images]).reshape(pixels.shape)


def _rgb(image: np.ndarray, lo: float, hi: float) -> np.ndarray:
    share = np.clip((np.asarray(image, np.float64) - lo) / max(hi - lo, 1e-12), 0, 1)
    return np.ascontiguousarray(np.round(share * 255).astype(np.uint8).transpose(1, 2, 0))


def shrink(plane: np.ndarray, most: int) -> np.ndarray:
    """The plane (..., H, W) at most `most` wide and high, by averaging blocks; edges that fill no block are cut off."""
    step = math.ceil(max(plane.shape[-2:]) / most)
    if step <= 1:
        return plane
    H, W = (size // step for size in plane.shape[-2:])
    if not H or not W:
        return plane[..., ::step, ::step]
    cut = plane[..., : H * step, : W * step]
    return cut.reshape(*plane.shape[:-2], H, step, W, step).mean((-3, -1))


def _tile(plane: np.ndarray, limit: float, cell: int, marks: bool, framed: bool) -> np.ndarray:
    share = np.clip(np.nan_to_num(plane) / (limit if limit > 0 else 1.0), -1, 1)
    index = np.where(np.isnan(plane), _CLEAR, np.round(share * _STEPS) + _ZERO).astype(np.uint8)
    tile = index.repeat(cell, 0).repeat(cell, 1)
    if marks and cell >= 5:
        middle, inset = cell // 2, max(1, round(cell * 0.28))
        thick = max(1, cell // 8)
        for row, column in zip(*np.nonzero(share < -_MARK_FROM), strict=True):
            top, left = row * cell + middle - thick // 2, column * cell
            mark = _LIGHT_MARK if share[row, column] < -_LIGHT_FROM else _DARK_MARK
            tile[top : top + thick, left + inset : left + cell - inset] = mark
    if framed:
        tile = np.pad(tile, 1, constant_values=_FRAME)
    return tile


def _picture(index: np.ndarray, palette: np.ndarray) -> Picture:
    """Indexed, with only the colours that occur: most kernels need fewer than thirty."""
    used, compact = np.unique(index, return_inverse=True)
    pixels = compact.reshape(index.shape).astype(np.uint8)
    return Picture(_uri("png", _png(pixels, index.shape[1], 3, palette[used])), index.shape[1], index.shape[0])


def _png(rows: np.ndarray, width: int, kind: int, palette: np.ndarray | None = None) -> bytes:
    """PNG (ISO/IEC 15948) of uint8 rows; kind 2 = RGB, 3 = indexed. No filter: pictures are blocks of equal cells."""
    body = np.zeros((rows.shape[0], rows.shape[1] + 1), np.uint8)
    body[:, 1:] = rows
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, rows.shape[0], 8, kind, 0, 0, 0))]
    if palette is not None:
        chunks += [(b"PLTE", palette[:, :3].tobytes()), (b"tRNS", palette[:, 3].tobytes())]
    chunks += [(b"IDAT", zlib.compress(body.tobytes(), 9)), (b"IEND", b"")]
    packed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(data).decode("ascii")
