"""A run's place in its own history: its checkpoints as it goes, and the return to one of them."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from trainer.checkpoints import list_steps
from trainer.engine.adapters import WEIGHTS, adapter_bytes, save_adapter
from trainer.engine.checkpoint import (
    Keeper,
    agree_on_checkpoint,
    check_rooms,
    collect_state,
    load_best,
    load_state,
    restore_state,
    take_over,
)
from trainer.errors import ClusterError

if TYPE_CHECKING:
    from trainer.engine.loop import Run


class Bookmark:
    """Keeps and finds the place of ``run``. Every rank has one; `resume`, `keep` and `close` are collectives in their order."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._adapter = run.plan.run_dir / "adapter"
        self._keeper = Keeper(run.plan.run_dir / "checkpoints", run.config.checkpoint, run.comm)
        self._is_best_saved = True
        check_rooms(run.comm, self._keeper, run.model)

    def wishes(self) -> tuple[float, float]:
        """Return what this rank wishes of the step that is going: see `Keeper.wishes`."""
        return self._keeper.wishes(self._run.progress.steps_done + 1)

    def resume(self) -> bool:
        """Go on from the newest checkpoint that is whole, if the plan says from where; returns whether there was one."""
        run = self._run
        source = run.plan.resume_from
        if source is None:
            return False
        found, passed_over = agree_on_checkpoint(run.comm, source / "checkpoints", self._keeper.folder)
        step = found.step if found else 0
        take_over(run.comm, self._keeper.folder, step)
        for problem in passed_over:
            run.tell("notice", text=f"passed over a damaged checkpoint: {problem}")
        if found is None:
            run.tell("notice", text=f"{source}: has no checkpoint on any host; the run begins again")
        is_own = source == run.plan.run_dir
        told = found.facts.get("told", []) if found and is_own else []
        run.tell("resumed", step=step, attempt=run.plan.attempt, path=str(found.folder) if found else "", told=told)
        if found is None:
            return False
        restore_state(run.model, run.step.optimizer, load_state(found))
        run.progress = type(run.progress)(**found.facts["progress"])
        if is_own:  # a branch may have other data, and deals out anew
            run.feed.restore(found.facts["feed"])
            self._keeper.go_on_from(step)
        self._restore_best(load_best(found))
        if not is_own:
            self.keep()  # if it is lost before its first step, it has a place of its own to go on from
        run.sentry.compare(step)
        self._compare_software(found.facts["software"])
        return True

    def note_best(self, *, is_saved: bool) -> None:
        """Take note of the adapter as it is: it is the best so far, and ``is_saved`` unless the disk had no room."""
        if self._run.comm.is_first_on_host:
            self._keeper.best = adapter_bytes(self._run.model)
            self._is_best_saved = is_saved

    def save_best(self) -> None:
        """Save the best adapter if that could not be done when it was found; raises `ClusterError` if it still cannot."""
        if self._is_best_saved:
            return
        try:
            self._restore_best(self._keeper.best)
        except OSError as error:
            where = f"{socket.gethostname()}: {self._adapter}"
            raise ClusterError(f"{where}: cannot be written: {error.strerror}; make room, and go on with --resume") from error

    def keep(self) -> None:
        """Have the state after the last step written as a checkpoint, unless it has been."""
        run = self._run
        facts = {
            "progress": {**asdict(run.progress), "stopped": False},
            "feed": run.feed.describe(),
            "fingerprints": dict(run.plan.fingerprints),
            "config": run.config.as_dict(),
            "software": run.software,
            "world_size": run.comm.size,
            "attempt": run.plan.attempt,
            "told": run.diary.pages(),
        }
        self._keeper.save(run.progress.steps_done, collect_state(run.model, run.step.optimizer), facts, run.progress.best_step)
        run.diary.forget(run.progress.steps_done, time.time())

    def tell(self) -> None:
        """Tell what has become of checkpoints since the last time; a host whose disk is full speaks for itself."""
        for news in self._keeper.take_news():
            if isinstance(news, str):
                self._run.events.emit("notice", text=news)
                continue
            kept = news.checkpoint
            about = {"step": kept.step, "size_bytes": kept.size_bytes, "seconds": news.seconds}
            self._run.tell("checkpoint", **about, path=str(kept.folder))

    def last_step(self) -> int:
        """Return the step of the newest checkpoint, 0 while there is none."""
        self._keeper.wait()
        return next(iter(list_steps(self._keeper.folder)), 0)

    def close(self) -> None:
        """Return when the last checkpoint is on the disk."""
        self._keeper.wait()
        self.tell()

    def _restore_best(self, best: bytes | None) -> None:
        """Make ``adapter/`` what it was at the checkpoint: steps that are done again may have left another."""
        self._keeper.best = best
        if not self._run.comm.is_first_on_host:
            return
        shutil.rmtree(self._adapter, ignore_errors=True)
        if best:
            save_adapter(self._run.model, self._run.plan, self._adapter)
            scratch = self._adapter / f".{WEIGHTS}"
            scratch.write_bytes(best)
            os.replace(scratch, self._adapter / WEIGHTS)

    def _compare_software(self, before: Mapping[str, Any]) -> None:
        now = self._run.software
        changed = [
            f"{name} {before.get(name, 'none')} → {version}" for name, version in now.items() if before.get(name) != version
        ]
        if changed:
            text = f"other software wrote the checkpoint, so the last bits may differ: {', '.join(changed)}"
            self._run.tell("notice", text=text)
