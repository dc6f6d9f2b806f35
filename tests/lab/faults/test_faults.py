"""The short campaign: each kind of fault that has a way back of its own, once, with fixed seeds."""

from __future__ import annotations

import pytest

from tests.lab.faults.campaign import Campaign
from tests.lab.faults.faults import FAULTS
from tests.lab.shipyard import Shipyard

_CHOSEN = ("a host is frozen", "the control machine reboots", "the newest checkpoint is altered, a rank killed")


@pytest.fixture(scope="module")
def campaign(yard: Shipyard) -> Campaign:
    """Return what strikes runs on the provisioned hosts."""
    return Campaign(yard)


@pytest.mark.parametrize("name", _CHOSEN)
def test_a_struck_run_comes_to_its_end(campaign: Campaign, name: str) -> None:
    """It ends well by itself or resumed; each sample once; the same bits at the same number of ranks; nothing is left."""
    fault = next(fault for fault in FAULTS if fault.name == name)
    result = campaign.strike(fault, 2, seed=6)
    assert result.problems == []
    assert result.again_s is not None
