"""MetricBuffer: reductions against numpy, values of several steps, tensors of an accelerator in one copy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tracking.metrics import MetricBuffer
from pipeline.tracking.names import reduction_of

NAMES = {"train/loss": np.mean, "train/skipped_steps": np.sum, "train/lr": lambda values: values[-1]}


class Away(torch.Tensor):
    """There is no accelerator here: this one says that it lies there."""

    is_cpu = property(lambda self: False)

    def item(self):
        raise AssertionError("waits for the accelerator")


@pytest.fixture(params=["here", "on an accelerator"], scope="module")
def tensor(request):
    """Makes a tensor that lies there."""

    def make(value, **options):
        made = torch.tensor(value, **options)
        return made if request.param == "here" else made.as_subclass(Away)

    return make


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20),
    st.sampled_from(sorted(NAMES)),
    st.booleans(),
)
def test_reductions_equal_numpy_for_floats_and_tensors(tensor, values, name, as_tensor):
    buffer = MetricBuffer()
    for value in values:
        buffer.record(name, tensor(value) if as_tensor else value)
    assert buffer.flush()[name] == pytest.approx(float(NAMES[name](values)), rel=1e-12, abs=1e-12)


def test_flush_forgets_values_keeps_order_and_returns_plain_floats(tensor):
    buffer = MetricBuffer()
    buffer.record("b", tensor([2.0], dtype=torch.bfloat16))
    buffer.record("a", 1)
    flushed = buffer.flush()
    assert list(flushed.items()) == [("b", 2.0), ("a", 1.0)]
    assert all(type(value) is float for value in flushed.values())
    assert buffer.flush() == {}


def test_a_dict_that_goes_on_growing_is_recorded_as_it_was(tensor):
    buffer, values = MetricBuffer(), {"a": tensor(1.0)}
    buffer.record_all(values)
    values["b"] = tensor(2.0)
    assert buffer.flush() == {"a": 1.0}


@pytest.mark.parametrize("name", ["train/loss", "train/skipped_steps"])
def test_nan_is_not_hidden_by_the_reduction(tensor, name):
    buffer = MetricBuffer()
    for value in (1.0, tensor(math.nan), 2.0):
        buffer.record(name, value)
    assert math.isnan(buffer.flush()[name])


def test_a_tensor_of_more_elements_is_named(tensor):
    buffer = MetricBuffer()
    buffer.record("train/loss", tensor([0.0, 0.0]))
    with pytest.raises(ValueError, match="metric 'train/loss' should be one number"):
        buffer.flush()


def test_values_of_several_steps_and_types_are_reduced_together(tensor):
    buffer = MetricBuffer()
    for step in range(3):
        values = {
            "train/skipped_steps": tensor(1.5 + step),
            "train/lr": 4.0,
            "data/samples/birds": tensor([2.0 * step], dtype=torch.float64),
            "x": tensor(7, dtype=torch.int64),
        }
        buffer.record_all(values | ({"y": tensor(1.0, requires_grad=True)} if step == 1 else {}))
    assert list(buffer.flush().items()) == [
        ("train/skipped_steps", 1.5 + 2.5 + 3.5),
        ("train/lr", 4.0),
        ("data/samples/birds", 4.0),
        ("x", 7.0),
        ("y", 1.0),
    ]


def test_most_metrics_are_averaged():
    assert reduction_of("npn/anything") == "mean"
