"""How much a report looks at, as data: a line a number, a column a profile."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """images: looked at in the one pass that maxima, firing and correlations come from. gradient_images: for importance
    estimated from gradients, and for what else needs them. field_images: for the effective receptive field. removed:
    kernels removed one at a time, on at most removal_images. rounds: of timing. against: images for cost against
    importance, of so many layers. slices: of each kernel that the page carries, the strongest.
    """

    images: int
    gradient_images: int
    field_images: int
    removed: int
    removal_images: int
    rounds: int
    against: int
    layers: int
    slices: int = 8


PROFILES = {
    "quick": Profile(
        images=500, gradient_images=64, field_images=2, removed=16, removal_images=128, rounds=15, against=64, layers=3
    ),
    "full": Profile(
        images=100_000,
        gradient_images=2_000,
        field_images=16,
        removed=512,
        removal_images=2_000,
        rounds=31,
        against=1_000,
        layers=100,
    ),
}
