"""Every sample and every bad input that torch ships for its convolutions, through `enable()`."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import hubel
from tests.ops.samples import OPS, calls, unit

# torch's own remark on padding="same" with even kernels.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")

OTHER_DTYPES = (torch.float64, torch.complex128, torch.int64)
# Half a unit in the last place.
NARROW = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@pytest.fixture
def strict():
    hubel.set_accuracy("strict")
    yield
    hubel.set_accuracy("default")


# What torch's OpInfos ask of float32 themselves, where it is not `assert_close`'s default: (atol, rtol).
TOLERANCES = {
    "conv_transpose1d": (1e-4, 1.3e-6),
    "conv_transpose2d": (1e-4, 1.3e-6),
    "conv_transpose3d": (2e-4, 2e-4),
    "conv2d": (5e-5, 5e-5),
    "conv3d": (5e-5, 5e-6),
}


def _tolerance(name: str) -> dict[str, Any]:
    return dict(zip(("atol", "rtol"), TOLERANCES[name], strict=True)) if name in TOLERANCES else {}


@pytest.mark.parametrize("name", OPS)
def test_samples_strict_within_torchs_tolerances(name, strict):
    for call in calls(name):
        expected = call.run(torch.Tensor.double)
        with hubel.enabled():
            results = call.run()
        for result, reference in zip(results, expected, strict=True):
            assert_close(result, reference.float(), **_tolerance(name), msg=lambda text, call=call: f"{call}\n{text}")


@pytest.mark.parametrize("name", OPS)
def test_samples_default_within_ours(name):
    for call in calls(name):
        expected = call.run(torch.Tensor.double)
        with hubel.enabled():
            results = call.run()
        if not results[0].numel():
            continue
        sizes, terms = call.expected_size(), call.terms()
        for result, reference, size, k in zip(results, expected, sizes, terms, strict=True):
            error = float((result.double() - reference).detach().norm()) / max(size, float(reference.detach().norm()))
            assert error <= 6 * unit(k), f"{call}: {error:.2e}"


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_samples_of_16_bits_are_rounded_once(name, dtype):
    """Output and gradients, against float64 on the same rounded numbers. A transposed convolution's bias, and zeros
    behind its input, cost a second rounding.
    """
    for call in calls(name, dtype):
        expected = call.run(lambda t: t.to(dtype).double())
        theirs = call.run(lambda t: t.to(dtype))
        with hubel.enabled() as log:
            results = call.run(lambda t: t.to(dtype))
        if not results[0].numel():
            continue
        assert log.native == 2, log.reasons
        assert [(t.shape, t.stride(), t.dtype) for t in results] == [(t.shape, t.stride(), t.dtype) for t in theirs]
        sizes, terms = call.expected_size(), call.terms()
        for result, reference, size, k in zip(results, expected, sizes, terms, strict=True):
            error = float((result.double() - reference).detach().norm()) / max(size, float(reference.detach().norm()))
            assert error <= 6 * unit(k) + 2 * NARROW[dtype], f"{call}: {error:.2e}"


@pytest.mark.parametrize("name", OPS)
def test_samples_keep_torchs_shapes_strides_and_graph(name):
    for call in calls(name):
        theirs = call.run()
        with hubel.enabled():
            ours = call.run()
        assert [(t.shape, t.stride(), t.dtype) for t in ours] == [(t.shape, t.stride(), t.dtype) for t in theirs]
        assert type(ours[0].grad_fn) is type(theirs[0].grad_fn)


def test_at_least_95_percent_of_the_samples_run_wholly_on_hubel():
    samples, native, reasons = 0, 0, Counter()
    for name in OPS:
        for call in calls(name):
            with hubel.enabled() as log:
                output = call.run()[0]
            if output.numel():
                samples += 1
                native += log.fallback == 0 and log.native == 2
                reasons += log.reasons
    assert native >= 0.95 * samples > 80, reasons


@pytest.mark.parametrize("dtype", OTHER_DTYPES, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_other_dtypes_are_torchs(name, dtype):
    if dtype not in OPS[name].dtypes:
        pytest.skip(f"torch has no {name} of {dtype}")
    for call in calls(name, dtype):
        if dtype == torch.int64:
            theirs = [call.function()(*call.tensors, **call.rest)]
            with hubel.enabled() as log:
                ours = [call.function()(*call.tensors, **call.rest)]
        else:
            theirs = call.run(lambda t: t.to(dtype))
            with hubel.enabled() as log:
                ours = call.run(lambda t: t.to(dtype))
        assert log.native == 0
        assert log.fallback > 0
        assert all("the dtype is torch." in why or "empty" in why for _, why in log.reasons)
        assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", OPS)
def test_complex64_runs_on_hubel_as_torch_splits_it_into_float32(name):
    for call in calls(name, torch.complex64):
        theirs = call.run(lambda t: t.to(torch.complex64))
        with hubel.enabled() as log:
            ours = call.run(lambda t: t.to(torch.complex64))
        assert log.native > 0
        assert_close(ours, theirs, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", [name for name in OPS if OPS[name].error_inputs_func])
def test_bad_inputs_raise_exactly_what_torch_raises(name):
    count = 0
    for bad in OPS[name].error_inputs("cpu"):
        sample = bad.sample_input
        with pytest.raises(Exception) as theirs:
            OPS[name].op(sample.input, *sample.args, **sample.kwargs)
        with hubel.enabled(), pytest.raises(Exception) as ours:
            OPS[name].op(sample.input, *sample.args, **sample.kwargs)
        assert type(ours.value) is type(theirs.value)
        assert str(ours.value) == str(theirs.value)
        count += 1
    assert count
