"""How much each analysis looks at: a table, so that what a profile means can be read and changed in one place.

`quick` is made for ResNet-50 with 500 images in a few minutes on two cores; `full` for an evening. What is not in the
table has the analysis's own default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hubel.errors import unknown

# More kernels than a layer has: every one has a page of its own in a report.
EVERY = 1_000_000


@dataclass(frozen=True)
class Profile:
    """images: at most so many go through the shared pass. options: of each analysis, by name.

    passes: of each analysis, how many images' worth of forward passes it takes about, beside the shared pass; for the
    estimate before the start. A backward pass counts as two.
    """

    images: int
    options: dict[str, dict[str, Any]]
    passes: dict[str, int]


PROFILES: dict[str, Profile] = {
    "quick": Profile(
        images=500,
        options={
            "kernels": {"most": EVERY, "most_slices": 8},
            "feature_maps": {"most": 16},
            "receptive_field": {"most": 2},
            "dead_kernels": {"verify": 8},
            "importance": {"most": 16},
            "cost": {"rounds": 9, "against": 24, "most_layers": 5},
            "redundancy": {"most": 8, "most_layers": 4, "measure": 16, "rounds": 5},
            "contributions": {"sample": 24},
            "tuning_curves": {"angles": 8, "frequencies": 4, "phases": 2, "hues": 6},
            "shift": {"most": 32},
            "attribution": {"steps": 16},
        },
        passes={
            "receptive_field": 120,
            "dead_kernels": 200,
            "importance": 500,
            "cost": 400,
            "redundancy": 300,
            "contributions": 40,
            "tuning_curves": 71,
            "shift": 200,
            "attribution": 60,
        },
    ),
    "full": Profile(
        images=2000,
        options={
            "kernels": {"most": EVERY, "most_slices": 8},
            "feature_maps": {"most": 64},
            "receptive_field": {"most": 16, "draws": 4},
            "dead_kernels": {"verify": 256},
            "importance": {"most": 256},
            "cost": {"rounds": 31, "against": 256, "most_layers": 1000},
            "redundancy": {"most": 64, "most_layers": 1000, "measure": 128},
            "contributions": {"sample": 128},
            "tuning_curves": {"angles": 24, "frequencies": 8, "phases": 4, "hues": 12},
            "shift": {"most": 500},
            "attribution": {"steps": 64},
        },
        passes={
            "receptive_field": 3000,
            "dead_kernels": 5000,
            "importance": 60_000,
            "cost": 60_000,
            "redundancy": 20_000,
            "contributions": 200,
            "tuning_curves": 800,
            "shift": 3500,
            "attribution": 250,
        },
    ),
}

# Images that importance may use: each removed kernel is a pass over half of them.
IMPORTANCE_IMAGES = {"quick": 96, "full": 1000}


def profile_named(name: str) -> Profile:
    """UnknownNameError, with the near ones, for a name that is not in the table."""
    if name not in PROFILES:
        raise unknown("profile", name, PROFILES)
    return PROFILES[name]
