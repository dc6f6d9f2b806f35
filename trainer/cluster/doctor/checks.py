"""The table of all that the doctor knows, in the order in which it is told."""

from __future__ import annotations

from trainer.cluster.doctor.checks_darwin import DARWIN_CHECKS
from trainer.cluster.doctor.checks_host import HOST_CHECKS
from trainer.cluster.doctor.checks_network import NETWORK_CHECKS
from trainer.cluster.doctor.checks_reach import REACH_CHECKS
from trainer.cluster.doctor.view import Check

CHECKS: tuple[Check, ...] = (*REACH_CHECKS, *DARWIN_CHECKS, *HOST_CHECKS, *NETWORK_CHECKS)
