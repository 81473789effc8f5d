"""The microscope: one analysis a file. Each takes any nn.Module and returns a Record, never a figure.

    kernels          the weights: how strong, how smooth, how far training moved them    a net
    feature_maps     the activations, from the input to the scores                       a net and images
    one_number       one number of a map, made by hand: patch · kernel + bias            a net and one image
    ablation         remove one kernel: scores before and after                          a net and images, labels if any
    receptive_field  what a unit can see of the image, and what it uses                  a net and images (or a shape)
    top_patches      the patches that excite a kernel most                               a net and images
    dead_kernels     kernels that do nothing, and what kind of nothing                   a net, images for most of it
    importance       what the answers owe to a kernel, measured or estimated             a net and images
    cost             counted and measured cost of a layer, beside its importance         a net and images
    redundancy       duplicates, opposites, rank, separable kernels                      a net, images for effects
    contributions    which kernels pushed one answer                                     a net and images
    tuning_curves    the stripes and hues that a kernel answers to                       a net and images
    shift            does the answer stay when the image moves                           a net and images
    edges            what the border does to every layer                                 a net and images
    checkerboard     patterns of the stride                                              a net
    similarity       how alike layers represent the images                               a net and 64 images
    attribution      which pixels an answer rests on (extra: Captum)                     a net and images
    training_history kernels as they changed                                             snapshots of a training

The keys of ANALYSES are the words of `hubel report --only` and the names of these functions. `sweep` is the one pass
over the images that several of them share: make it once and pass it on. `look` runs all that apply, with a profile.
"""

from __future__ import annotations

from collections.abc import Callable

from hubel.inspect.ablation import ablation, without
from hubel.inspect.attribution import attribution
from hubel.inspect.checkerboard import checkerboard
from hubel.inspect.contributions import contributions
from hubel.inspect.cost import cost
from hubel.inspect.dead_kernels import dead_kernels
from hubel.inspect.edges import edges
from hubel.inspect.feature_maps import feature_maps
from hubel.inspect.hooks import Call, watch
from hubel.inspect.importance import importance
from hubel.inspect.kernels import kernels
from hubel.inspect.layers import Layer, layers_of
from hubel.inspect.look import Look, estimate, look
from hubel.inspect.one_number import one_number
from hubel.inspect.receptive_field import receptive_field
from hubel.inspect.redundancy import redundancy
from hubel.inspect.shift import shift
from hubel.inspect.similarity import similarity
from hubel.inspect.sweep import Sweep, sweep
from hubel.inspect.top_patches import top_patches
from hubel.inspect.training_history import Snapshots, training_history
from hubel.inspect.tuning_curves import tuning_curves
from hubel.records import Record

ANALYSES: dict[str, Callable[..., Record]] = {
    "kernels": kernels,
    "feature_maps": feature_maps,
    "one_number": one_number,
    "ablation": ablation,
    "receptive_field": receptive_field,
    "top_patches": top_patches,
    "dead_kernels": dead_kernels,
    "importance": importance,
    "cost": cost,
    "redundancy": redundancy,
    "contributions": contributions,
    "tuning_curves": tuning_curves,
    "shift": shift,
    "edges": edges,
    "checkerboard": checkerboard,
    "similarity": similarity,
    "attribution": attribution,
    "training_history": training_history,
}

__all__ = [
    "ANALYSES", "kernels", "feature_maps", "one_number", "ablation", "receptive_field", "top_patches", "dead_kernels",
    "importance", "cost", "redundancy", "contributions", "tuning_curves", "shift", "edges", "checkerboard",
    "similarity", "attribution", "training_history", "Snapshots",
    "look", "Look", "estimate", "sweep", "Sweep", "without", "watch", "layers_of", "Call", "Layer",
]  # fmt: skip
