"""The frozen trunk of a run: which samples' hidden states are there, on which host, and how they get there.

On every host one file (`trainer.data.hidden`) is shared by its ranks and by later runs of the same model, data and depth.
"""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model
from numpy.typing import NDArray

from trainer.cluster.plan import RunPlan
from trainer.comm.group import Comm
from trainer.data.assign import weigh_rows
from trainer.data.hidden import HiddenStore, check_room, key_of, prune
from trainer.data.store import lengths_of
from trainer.data.tokens import TokenRow
from trainer.model.network import Network, Skip
from trainer.model.trunk import Trunk, check_split, find_depth
from trainer.paths import cache_dir

Tick = Callable[[int, int], None]
_SPLITS = ("train", "valid")
_NUMPY = {mx.float32: np.float32, mx.float16: np.float16, mx.bfloat16: np.uint16}  # NumPy has no bfloat16: its bits


@dataclass(frozen=True)
class Declined:
    """Why the frozen layers are computed every time."""

    reason: str


class FrozenTrunk:
    """Hidden states of this rank's rows. ``costs`` and ``note`` know all hosts; they are called alike on every rank."""

    def __init__(
        self, trunk: Trunk, store: HiddenStore, rows: Mapping[str, Sequence[TokenRow]], kind: Any, comm: Comm, ratio: float
    ) -> None:
        self.trunk, self.store = trunk, store
        self._rows, self._kind = rows, kind
        self.ratio = ratio  # the trunk's work for a token over the rest's
        self._first = {"train": 0, "valid": len(rows["train"])}
        self._unsaved: dict[int, bytes] = {}
        hosts = comm.all_gather(socket.gethostname())
        self._host_of = [hosts.index(host) for host in hosts]  # a host is known by its first rank
        present = comm.all_gather(np.packbits(store.written()).tobytes())
        count = sum(len(each) for each in rows.values())
        self._present = {
            host: np.unpackbits(np.frombuffer(present[host], np.uint8), count=count).astype(bool) for host in set(self._host_of)
        }

    @property
    def num_present(self) -> int:
        """How many samples are on this machine already."""
        return int(self.store.written().sum())

    def put_back(self, network: Network) -> None:
        """Let ``network`` have its frozen layers: what computes on other inputs than the run's samples needs them."""
        network.restore(self.trunk.layers())

    def take_out(self, network: Network) -> None:
        """Take the frozen layers out of ``network`` and out of memory."""
        if not isinstance(network.layers[0], Skip):
            network.shed(self.trunk.depth)
        mx.clear_cache()

    def costs(self, rows: Sequence[int], lengths: Sequence[int]) -> list[list[float]]:
        """Return for each rank what each training row costs there, in tokens of a row whose hidden state is there."""
        by_host = {host: weigh_rows(lengths, kept[list(rows)].tolist(), self.ratio) for host, kept in self._present.items()}
        return [by_host[host] for host in self._host_of]

    def note(self, shares: Sequence[Sequence[int]]) -> None:
        """Take note that each rank is about to compute, or has, the training rows of its share."""
        for host, share in zip(self._host_of, shares, strict=True):
            self._present[host][list(share)] = True

    def describe(self) -> dict[str, str]:
        """Return which samples are held to be on which host, fit for JSON; hosts as their first ranks' numbers."""
        return {str(host): base64.b64encode(np.packbits(held).tobytes()).decode() for host, held in self._present.items()}

    def restore(self, told: Mapping[str, str]) -> None:
        """Hold to be where what `describe` told: shares follow from it. What is not there after all is computed again."""
        for host, held in self._present.items():
            bits = np.frombuffer(base64.b64decode(told[str(host)]), np.uint8)
            self._present[host] = np.unpackbits(bits, count=len(held)).astype(bool)

    def fill(self, split: str, rows: Sequence[int], tick: Tick) -> None:
        """Make sure that the hidden states of ``rows`` are there: compute what is missing or not whole."""
        first = self._first[split]
        missing = [row for row in rows if first + row not in self._unsaved and self.store.read(first + row) is None]
        if not missing:
            return
        found = self.trunk.enter([self._rows[split][row].tokens[:-1].astype(np.int32) for row in missing], tick)
        for row, hidden in zip(missing, found, strict=True):
            self._keep(first + row, _to_bytes(hidden))

    def entering(self, split: str, rows: Sequence[int]) -> NDArray[Any]:
        """Return the hidden states of ``rows`` one after the other: [1, T, H]."""
        first = self._first[split]
        parts = []
        for row in rows:
            data = self._unsaved.pop(first + row, None) or self.store.read(first + row)
            if data is None:  # altered since `fill` looked
                self.fill(split, [row], lambda _done, _total: None)
                data = self._unsaved.pop(first + row, None) or self.store.read(first + row)
            assert data is not None
            parts.append(np.frombuffer(data, self._kind).reshape(len(self._rows[split][row]) - 1, -1))
        return np.concatenate(parts)[None]

    def _keep(self, index: int, data: bytes) -> None:
        try:
            self.store.write(index, data)
        except OSError:  # a full disk: computed again next time
            self._unsaved[index] = data


def open_trunk(plan: RunPlan, model: nn.Module, rows: Mapping[str, Sequence[TokenRow]], comm: Comm) -> FrozenTrunk | Declined:
    """Return the run's frozen trunk, or why there is none; a collective. All ranks get the same."""
    reason = next((each for each in comm.all_gather(_why_not(plan, model, rows, comm)) if each), "")
    if reason:
        return Declined(reason)
    depth = find_depth(model, plan.config.adapter)
    trunk = Trunk(_loader(plan), depth, use_kernels=plan.config.speed.kernels)
    store: HiddenStore | None
    try:
        store, trouble = _open_store(plan, model, rows), ""
    except OSError as error:
        store, trouble = None, f"{error.filename or _root()}: {error.strerror} on {socket.gethostname()}"
    trouble = next((each for each in comm.all_gather(trouble) if each), "")
    if trouble or store is None:
        return Declined(trouble)
    kind = _NUMPY[_dtype(model)]
    return FrozenTrunk(trunk, store, rows, kind, comm, _trunk_ratio(model, depth))


def _why_not(plan: RunPlan, model: nn.Module, rows: Mapping[str, Sequence[TokenRow]], comm: Comm) -> str:
    config = plan.config
    depth = find_depth(model, config.adapter)
    if not config.speed.trunk_cache:
        return "speed.trunk_cache is off"
    if depth == 0:
        return "all layers are adapted, so there is no frozen trunk below them"
    if not isinstance(getattr(getattr(model, "model", None), "layers", None), list) or _dtype(model) not in _NUMPY:
        return "the model's layers are not where they could be taken out"
    if not comm.is_first_on_host:
        return ""
    verdict = _root() / f"{key_of({'model': plan.fingerprints.get('model', ''), 'depth': str(depth)})}.split"
    size = _size(model, rows)
    limit = int(config.speed.trunk_cache_gib * 2**30)
    return _known_split(verdict, plan, depth) or check_room(_root(), size, limit, _present_bytes(plan, model, rows))


def _known_split(verdict: Path, plan: RunPlan, depth: int) -> str:
    """Return `check_split`'s answer, found out once for a model and depth."""
    try:
        return verdict.read_text("utf-8")
    except OSError:
        pass
    reason = check_split(_loader(plan), depth)
    try:
        verdict.parent.mkdir(parents=True, exist_ok=True)
        verdict.write_text(reason, "utf-8")
    except OSError:
        pass  # found out again next time
    return reason


def _open_store(plan: RunPlan, model: nn.Module, rows: Mapping[str, Sequence[TokenRow]]) -> HiddenStore:
    facts = _facts(plan, model)
    _root().mkdir(parents=True, exist_ok=True)
    prune(_root(), int(plan.config.speed.trunk_cache_gib * 2**30), key_of(facts))
    return HiddenStore(_root(), facts, _num_tokens(rows), _token_bytes(model))


def _present_bytes(plan: RunPlan, model: nn.Module, rows: Mapping[str, Sequence[TokenRow]]) -> int:
    data = _root() / key_of(_facts(plan, model)) / "hidden.bin"
    return data.stat().st_blocks * 512 if data.exists() else 0


def _facts(plan: RunPlan, model: nn.Module) -> dict[str, str]:
    """Return all that the hidden states depend on."""
    return {
        "model": plan.fingerprints.get("model", ""),
        "data": plan.fingerprints.get("data", ""),
        "max_tokens": str(plan.config.data.max_tokens),
        "depth": str(find_depth(model, plan.config.adapter)),
        "type": str(_dtype(model)),
        "kernels": str(plan.config.speed.kernels),
        "device": str(mx.default_device()),
    }


def _loader(plan: RunPlan) -> Callable[[], nn.Module]:
    def load() -> nn.Module:
        settings = {"trust_remote_code": plan.config.model.trust_remote_code}
        model: nn.Module = load_model(plan.model_path, lazy=True, **settings)[0]
        model.freeze()
        model.eval()
        return model

    return load


def _num_tokens(rows: Mapping[str, Sequence[TokenRow]]) -> NDArray[np.int64]:
    """Return of each row how many tokens enter the model, int64 [N]."""
    return np.concatenate([lengths_of(rows[split]) for split in _SPLITS]) - 1


def _size(model: nn.Module, rows: Mapping[str, Sequence[TokenRow]]) -> int:
    return int(_num_tokens(rows).sum()) * _token_bytes(model)


def _token_bytes(model: nn.Module) -> int:
    return int(_width(model) * _dtype(model).size)


def _width(model: nn.Module) -> int:
    return int(_norm(model).weight.shape[0])


def _dtype(model: nn.Module) -> Any:
    return _norm(model).weight.dtype


def _norm(model: nn.Module) -> Any:
    """Return the first norm of the first layer: its weight is as wide as the hidden state, and of its type."""
    return next(module for module in model.layers[0].modules() if isinstance(module, (nn.RMSNorm, nn.LayerNorm)))


def _trunk_ratio(model: nn.Module, depth: int) -> float:
    """Return the trunk's work for a token over the rest's: a forward pass over forward and backward, by numbers of weights."""
    layer = sum(value.size for _, value in tree_flatten(model.layers[-1].parameters()))
    head = getattr(model, "lm_head", None) or model.model.embed_tokens
    upper = (len(model.layers) - depth) * layer + sum(value.size for _, value in tree_flatten(head.parameters()))
    return float(depth * layer / (2 * upper))


def _to_bytes(hidden: mx.array) -> bytes:
    return np.array(hidden.view(mx.uint16) if hidden.dtype == mx.bfloat16 else hidden).tobytes()


def _root() -> Path:
    return Path(os.environ.get("FLOTILLA_TRUNK") or cache_dir() / "trunk")
