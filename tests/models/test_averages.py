"""Running means of scalars."""

import pytest
import torch

from pegasus_lightning.models.averages import Averages


def test_means_since_the_last_flush() -> None:
    averages = Averages()
    averages.add({"a": torch.tensor(1.0), "b": torch.tensor(10.0)})
    averages.add({"a": torch.tensor(4.0)})  # b is present in one of the two batches
    assert averages.flush() == {"a": 2.5, "b": 10.0}
    assert averages.flush() == {}
    averages.add({"a": torch.tensor(7.0)})
    assert averages.flush() == {"a": 7.0}


def test_values_are_copied_detached_and_kept_in_float32() -> None:
    averages = Averages()
    value = torch.tensor(1.0)
    averages.add({"a": value})
    averages.add({"a": value})
    assert value.item() == 1  # the caller's tensor is unchanged
    value.fill_(50)
    assert averages.flush() == {"a": 1.0}
    weight = torch.tensor(256.0, requires_grad=True)
    averages.add({"a": weight.bfloat16()})
    averages.add({"a": torch.tensor(1.0).bfloat16()})  # 257 is not representable in bf16
    assert averages.flush() == {"a": 128.5}


def test_nothing_finite_is_made_of_nan() -> None:
    averages = Averages()
    averages.add({"good": torch.tensor(1.0), "bad": torch.tensor(float("nan"))})
    averages.add({"good": torch.tensor(1.0), "bad": torch.tensor(1.0)})
    means = averages.flush()
    assert means["good"] == 1
    assert means["bad"] != means["bad"]


def test_mean_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    others = torch.tensor([3.0, 20.0])  # a and b of the other process
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda means: means.add_(others))
    averages = Averages()
    averages.add({"b": torch.tensor(10.0), "a": torch.tensor(1.0)})
    assert averages.flush() == {"a": 2.0, "b": 15.0}


def test_a_saved_state_goes_on_where_it_was() -> None:
    averages = Averages()
    averages.add({"a": torch.tensor(1.0)})
    state = averages.state()
    averages.add({"a": torch.tensor(100.0)})  # after the save, so not included
    resumed = Averages()
    resumed.restore(state)
    resumed.add({"a": torch.tensor(4.0)})
    assert resumed.flush() == {"a": 2.5}
