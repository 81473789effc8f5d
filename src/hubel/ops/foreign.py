"""torch's operators inside a network of Hubel's: whatever `graph` has no operator for runs as torch's own, in place.

In a graph such an operator is a name ("aten.topk.default") and arguments in which operands are numbered (`Operand`).
This host finds it, asks it on meta tensors what it makes, and runs it on memory of the arena.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hubel.errors import ModelError
from hubel.graph.host import Made, Operand
from hubel.graph.network import Node, Ref
from hubel.ops import library

# Convolutions whose weights are computed, too, are Hubel's.
_CONVOLUTION = "aten.convolution.default"
# Operators that read memory as if it were contiguous. torch puts a copy before them, which is nothing to our graphs.
_BLIND = frozenset({"aten.mkldnn_rnn_layer.default"})


class TorchHost:
    """Runs operators of torch's by name."""

    def makes(self, target: str, arguments: Any, keywords: Any, operands: Sequence[Any]) -> Any:
        try:
            with torch.no_grad():
                result = _called(target, arguments, keywords, [_meta(made) for made in operands], on_meta=True)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelError(
                f"torch's operators must fit the sizes they are given. Received: {target} ({reason}). Pass inputs of "
                "sizes that the network allows."
            ) from error
        return _made(result)

    def call(self, target: str, arguments: Any, keywords: Any, operands: Sequence[Any]) -> Any:
        return _called(target, arguments, keywords, operands)

    def view(self, memory: np.ndarray) -> Tensor:
        return torch.from_numpy(memory)

    def copy(self, value: Tensor, view: Tensor) -> None:
        view.copy_(value)


@lru_cache(maxsize=1024)
def operator(name: str) -> Callable[..., Any]:
    """torch's operator of this name. Raises ModelError if this torch has none."""
    found: Any = torch.ops
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except (AttributeError, RuntimeError):
        found = None
    if not isinstance(found, torch._ops.OpOverload):
        raise ModelError(
            f"a foreign operator is one of torch {torch.__version__}'s. Received: {name!r}. Use the torch that the "
            "network was captured with."
        )
    return found


def _called(target: str, arguments: Any, keywords: Any, operands: Sequence[Any], on_meta: bool = False) -> Any:
    def filled(value: Any) -> Any:
        if isinstance(value, Operand):
            return operands[value.index]
        if isinstance(value, tuple | list):
            return [filled(part) for part in value]
        if isinstance(value, dict):
            return {key: filled(part) for key, part in value.items()}
        return torch.device("meta") if on_meta and isinstance(value, torch.device) else value

    if target in _BLIND and not on_meta:
        operands = [value.contiguous() if isinstance(value, Tensor) else value for value in operands]
    found = library.convolution if target == _CONVOLUTION and not on_meta else operator(target)
    return found(*filled(arguments), **filled(keywords))


def _meta(made: Any) -> Any:
    if isinstance(made, Made):
        return torch.empty(made.shape or (), dtype=getattr(torch, made.dtype), device="meta")
    return [_meta(part) for part in made] if isinstance(made, tuple) else made


def _made(result: Any) -> Any:
    if isinstance(result, Tensor):
        return Made(tuple(result.shape), str(result.dtype).removeprefix("torch."))
    if isinstance(result, tuple | list):
        return tuple(_made(part) for part in result)
    return Made(None, type(result).__name__)


# What a file may name: functions of their arguments alone, of torch's public interface.
IN_FILES = frozenset(
    """
    _log_softmax _native_batch_norm_legit_no_training _softmax _to_copy _unsafe_view abs acos
    adaptive_max_pool1d adaptive_max_pool2d add addmm alias all amax amin any arange argmax argmin argsort
    asin atan atan2 avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm bilinear bitwise_and bitwise_not
    bitwise_or bmm cat ceil celu chunk clamp clamp_max clamp_min clone constant_pad_nd contiguous conv1d
    conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution cos cumprod cumsum detach
    div dropout einsum elu embedding eq erf exp expand expm1 eye fft_irfft fft_rfft flatten flip floor
    floor_divide full full_like ge gelu glu grid_sampler group_norm gru gt hann_window hardshrink
    hardsigmoid hardswish hardtanh im2col index_select instance_norm isfinite isinf isnan layer_norm le
    leaky_relu lerp linear log log10 log1p log2 log_softmax logical_and logical_not logical_or logsigmoid
    logsumexp lstm lt masked_fill matmul max max_pool1d max_pool2d max_pool2d_with_indices max_pool3d
    maximum mean min minimum mish mm mul mv narrow native_group_norm native_layer_norm ne neg new_full new_ones
    new_zeros norm ones ones_like pad permute pixel_shuffle pixel_unshuffle pow prelu prod reciprocal reflection_pad1d
    reflection_pad2d relu relu6 remainder repeat repeat_interleave replication_pad2d reshape rms_norm roll
    round rsqrt rsub scaled_dot_product_attention select selu sigmoid sign silu sin size slice softmax
    softplus sort split split_with_sizes sqrt square squeeze stack std std_mean stft sub sum t tan tanh
    tensor_split threshold tile to topk transpose tril triu trunc unbind unflatten unfold unsqueeze
    upsample_bicubic2d upsample_bilinear2d upsample_nearest1d upsample_nearest2d var var_mean view view_as
    view_as_complex view_as_real where zeros zeros_like
    """.split()
)
# Arguments that are neither numbers nor text, by their names.
_WORDS: dict[str, Any] = {
    **{
        str(value): value
        for name in (
            "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
            "contiguous_format", "channels_last", "preserve_format", "strided",
        )
        for value in [getattr(torch, name)]
    },
    "cpu": torch.device("cpu"),
}  # fmt: skip
_NUMBERS = ("inf", "-inf", "nan")


def encoded(node: Node) -> dict[str, Any]:
    """The attributes of a `torch` node as JSON. Raises ModelError where no file may name its operator."""
    _allowed(node["target"])

    def written(value: Any) -> Any:
        if isinstance(value, Operand):
            return {"operand": value.index}
        if isinstance(value, Ref):
            return {"ref": value.name}
        if isinstance(value, tuple | list):
            return [written(part) for part in value]
        if isinstance(value, float) and str(value) in _NUMBERS:
            return {"number": str(value)}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if str(value) in _WORDS:
            return {"word": str(value)}
        raise ModelError(
            f"a file holds numbers, names and dtypes. Received: {value!r}, in {node}. Keep it out of the net."
        )

    keywords = {key: written(value) for key, value in node["keywords"].items()}
    return {"target": node["target"], "arguments": [written(v) for v in node["arguments"]], "keywords": keywords}


def decoded(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What `encoded` wrote. Raises ModelError for an operator that a file may not name."""
    target = attributes["target"]
    _allowed(target)

    def read(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(read(part) for part in value)
        if isinstance(value, dict):
            ((kind, given),) = value.items()
            if kind == "operand" and isinstance(given, int):
                return Operand(given)
            if kind == "ref" and isinstance(given, str):
                return Ref(given)
            if kind == "number" and given in _NUMBERS:
                return float(given)
            if kind == "word":
                return _WORDS[given]
            raise ValueError(f"an argument was expected, not {value!r}")
        return value

    keywords = {str(key): read(value) for key, value in attributes["keywords"].items()}
    return {"target": target, "arguments": read(list(attributes["arguments"])), "keywords": keywords}


def _allowed(target: Any) -> None:
    parts = target.split(".") if isinstance(target, str) else []
    if len(parts) != 3 or parts[0] != "aten" or parts[1] not in IN_FILES or operator(target)._schema.is_mutable:  # type: ignore[attr-defined]
        raise ModelError(
            f"a .hubel file names functions of torch that only compute. Received: {target!r}. Keep this part of the "
            "network outside of the Session."
        )
