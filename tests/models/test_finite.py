"""Non-finite terms: reported at once on the CPU, and from an accelerator on arrival or on demand."""

from __future__ import annotations

import math
import pickle

import pytest
import torch

from pegasus_lightning.models.finite import FiniteWatch, _Look
from pegasus_lightning.utils.errors import Interrupted, NonFiniteLoss


def terms(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


@pytest.mark.promise(13)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_batch_and_the_terms_are_named(bad: float) -> None:
    watch = FiniteWatch()
    watch.look(terms(pixels=3e38, kl=-1.0), 1)
    with pytest.raises(NonFiniteLoss, match=r"^kl became NaN or infinite at batch 2\.$") as caught:
        watch.look(terms(pixels=1.0, kl=bad), 2)
    assert (caught.value.names, caught.value.batch) == (["kl"], 2)


def test_all_bad_terms_are_named() -> None:
    with pytest.raises(NonFiniteLoss, match=r"^pixels, kl became"):
        FiniteWatch().look(terms(pixels=math.nan, ok=0.0, kl=math.inf), 7)


class Transfer:
    """Stand-in for an accelerator event: incomplete until synchronised or set."""

    def __init__(self) -> None:
        self.there, self.waited = False, False

    def query(self) -> bool:
        return self.there

    def synchronize(self) -> None:
        self.there = self.waited = True


def test_what_has_not_arrived_is_not_waited_for_until_something_is_saved() -> None:
    watch, first, second = FiniteWatch(), Transfer(), Transfer()
    watch._pending.append(_Look(4, ["kl"], torch.tensor([1.0]), first))
    watch._pending.append(_Look(5, ["kl"], torch.tensor([math.nan]), second))
    watch.check()
    assert not first.waited
    assert len(watch._pending) == 2
    first.there = True
    watch.check()
    assert (second.waited, len(watch._pending)) == (False, 1)
    with pytest.raises(NonFiniteLoss, match="batch 5"):
        watch.check(wait=True)
    assert second.waited


def test_a_later_batch_tells_of_an_earlier_one_that_has_arrived() -> None:
    watch, event = FiniteWatch(), Transfer()
    watch._pending.append(_Look(5, ["kl"], torch.tensor([math.nan]), event))
    event.there = True
    with pytest.raises(NonFiniteLoss, match="batch 5"):
        watch.look(terms(kl=1.0), 6)


def test_a_cluster_can_send_these_errors_home() -> None:
    lost = pickle.loads(pickle.dumps(NonFiniteLoss(["kl"], 3)))
    assert (str(lost), lost.names, lost.batch) == ("kl became NaN or infinite at batch 3.", ["kl"], 3)
    stopped = pickle.loads(pickle.dumps(Interrupted(15)))
    assert (str(stopped), stopped.exit_code) == ("stopped by SIGTERM", 143)
