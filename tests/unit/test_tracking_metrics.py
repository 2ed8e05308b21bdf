"""MetricBuffer: reductions against numpy, tensors read as they were when recorded, one reduction per name."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tracking import metrics
from pipeline.tracking.metrics import MetricBuffer

NUMPY = {"mean": np.mean, "max": np.max, "sum": np.sum, "last": lambda values: values[-1]}


@pytest.fixture(params=["here", "on an accelerator"], autouse=True, scope="module")
def place(request):
    """There is no accelerator here: its tensors are these, which then travel as if they were there."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "here":
            patch.setattr(metrics, "_is_here", lambda value: False)
        yield


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20),
    st.sampled_from(sorted(NUMPY)),
    st.booleans(),
)
def test_reductions_equal_numpy_for_floats_and_tensors(values, reduction, as_tensor):
    buffer = MetricBuffer()
    for value in values:
        buffer.record("x", torch.tensor(value) if as_tensor else value, reduction)
    assert buffer.flush()["x"] == pytest.approx(float(NUMPY[reduction](values)), rel=1e-12, abs=1e-12)


def test_flush_forgets_values_keeps_order_and_returns_plain_floats():
    buffer = MetricBuffer()
    buffer.record("b", torch.tensor([2.0], dtype=torch.bfloat16))
    buffer.record("a", 1)
    flushed = buffer.flush()
    assert list(flushed.items()) == [("b", 2.0), ("a", 1.0)]
    assert all(type(value) is float for value in flushed.values())
    assert buffer.flush() == {}


def test_a_tensor_counts_as_it_was_when_recorded_and_keeps_no_graph():
    buffer = MetricBuffer()
    tau = torch.tensor([0.07], dtype=torch.float64, requires_grad=True)
    buffer.record("tau", tau, "last")
    with torch.no_grad():
        tau.mul_(2)
    assert not any(value.vector.requires_grad for value in buffer._values["tau"] if not isinstance(value, float))
    assert buffer.flush() == {"tau": pytest.approx(0.07)}


@pytest.mark.parametrize("reduction", ["mean", "max", "sum"])
def test_nan_is_not_hidden_by_the_reduction(reduction):
    buffer = MetricBuffer()
    for value in (1.0, math.nan, 2.0):
        buffer.record("loss", value, reduction)
    assert math.isnan(buffer.flush()["loss"])


def test_one_reduction_per_name_also_after_a_flush():
    buffer = MetricBuffer()
    buffer.record("loss", 1.0, "mean")
    buffer.flush()
    with pytest.raises(ValueError, match="'loss' is reduced by 'mean', not by 'sum'"):
        buffer.record("loss", 1.0, "sum")


def test_misuse_is_named():
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        MetricBuffer().record("loss", torch.zeros(2))
    with pytest.raises(ValueError, match="unknown reduction 'median', known are mean, last, max, sum"):
        MetricBuffer().record("loss", 1.0, "median")


def test_values_of_one_step_and_several_types_are_recorded_together():
    buffer = MetricBuffer()
    single, double = torch.tensor(1.5), torch.tensor([2.0], dtype=torch.float64)
    for _ in range(3):
        values = {"a": single, "b": 4.0, "c": double, "d": torch.tensor(7, dtype=torch.int64)}
        buffer.record_all(values, lambda name: "sum" if name == "a" else "last")
        single += 1
        double *= 2
    assert list(buffer.flush().items()) == [("a", 1.5 + 2.5 + 3.5), ("b", 4.0), ("c", 8.0), ("d", 7.0)]
