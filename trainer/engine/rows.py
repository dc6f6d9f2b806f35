"""The rows of a run: made or found in this host's token store."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from trainer.cluster.plan import RunPlan
from trainer.comm.agree import check_agreement
from trainer.comm.group import Comm
from trainer.data.fill import fill_store
from trainer.data.prune import prune_stores
from trainer.data.store import TokenStore, check_all_lengths, digest_index, key_store, open_store, read_index
from trainer.paths import cache_dir

Tick = Callable[[int, int], None]


def make_rows(
    data: Path, digest: str, model: Path, *, trust_remote_code: bool, max_tokens: int, tick: Tick, tell: Callable[[str], None]
) -> dict[str, TokenStore]:
    """Return the splits' rows, tokenised now or before; raises `InputError` for every line that cannot be learned from.

    ``tell`` hears which stores of other data had to go.
    """
    folder = cache_dir() / "tokens" / key_store(digest, model)
    fill_store(folder, data, model, trust_remote_code=trust_remote_code, tick=tick)
    for text in prune_stores(folder.parent, keep=folder.name):
        tell(text)
    return _open(folder, data, max_tokens)


def load_rows(plan: RunPlan, comm: Comm, tick: Tick = lambda _done, _total: None) -> dict[str, TokenStore]:
    """Return the splits' rows of a run; a collective: one rank of each host makes what is not there, the others wait.

    Raises `ClusterError` on every rank, naming the hosts, when their stores differ: each made its own.
    """
    digest, config = plan.fingerprints["data"], plan.config
    folder = cache_dir() / "tokens" / key_store(digest, plan.model_path)
    held: dict[str, str] = {}
    if comm.is_first_on_host:
        make_rows(
            plan.data_path,
            digest,
            plan.model_path,
            trust_remote_code=config.model.trust_remote_code,
            max_tokens=config.data.max_tokens,
            tick=tick,
            tell=lambda text: print(text, file=sys.stderr, flush=True),
        )
        index = read_index(folder)
        assert index is not None
        held[f"token store {folder.name}"] = digest_index(index)
    check_agreement(comm, held, {})
    return _open(folder, plan.data_path, config.data.max_tokens)


def _open(folder: Path, data: Path, max_tokens: int) -> dict[str, TokenStore]:
    splits = open_store(folder, data)
    check_all_lengths(splits.values(), max_tokens)
    return splits
