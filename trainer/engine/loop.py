"""A training run on one rank, from loading the model to the summary."""

from __future__ import annotations

import math
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.utils import get_total_parameters, load

from trainer.cluster.plan import RunPlan
from trainer.comm.group import Comm, to_floats
from trainer.comm.traffic import tell_traffic
from trainer.config import RunConfig
from trainer.data.formats import read_first_questions
from trainer.data.order import steps_per_epoch
from trainer.engine.adapters import load_adapter, save_adapter
from trainer.engine.answers import answer_all
from trainer.engine.checkpoint import Keeper
from trainer.engine.diary import Diary
from trainer.engine.evaluate import evaluate
from trainer.engine.feed import Feed
from trainer.engine.frozen import Declined, FrozenTrunk, open_trunk
from trainer.engine.memory import keep_little, peak_memory_mib
from trainer.engine.optimizer import make_optimizer
from trainer.engine.outset import agree_on, claim_host
from trainer.engine.pulse import Pulse
from trainer.engine.resume import Bookmark
from trainer.engine.rows import load_rows
from trainer.engine.sentry import Sentry
from trainer.engine.step import StepResult, TrainStep
from trainer.events import Events
from trainer.model import layerwise
from trainer.model.lora import attach_adapter, count_numbers
from trainer.model.network import Network


@dataclass
class Progress:
    """Where a run stands: the best validation so far, and sums for the summary."""

    first_loss: float = math.nan
    best_loss: float = math.inf
    best_step: int = 0
    validated_step: int = 0
    skipped: int = 0
    last_loss: float = math.nan
    steps_done: int = 0
    tokens: int = 0
    supervised: int = 0
    step_s: float = 0.0
    comm_s: float = 0.0
    wait_s: float = 0.0
    stopped: bool = False


class Run:
    """One run as one rank sees it. All methods are collectives: every rank goes through them in the same order."""

    def __init__(self, plan: RunPlan, comm: Comm, events: Events, should_stop: Callable[[], bool]) -> None:
        self.plan = plan
        self.config: RunConfig = plan.config
        self.comm = comm
        self.events = events
        self.progress = Progress()
        self.diary = Diary()
        self._should_stop = should_stop

    def execute(self, threads: int) -> None:
        """Train: agree, load, validate, step, validate, answer; emits the events of each."""
        with Pulse(self.events, self.config.launch.stall_s, is_heard=self.comm.is_first_on_host) as self.pulse:
            self._go_through(threads)

    def _go_through(self, threads: int) -> None:
        self._agree(threads)
        self._load()
        is_new = not self.bookmark.resume()
        if is_new:
            self._answer("before")
        if self.frozen:
            self.frozen.take_out(self.network)
        if is_new and not self._is_stopped():
            self._validate(0)
        if not self._is_stopped():
            self._train()
        self._finish()

    def _is_stopped(self) -> bool:
        """Whether any rank was asked to stop; the ranks learn it together, so that none goes on alone."""
        asked = self.comm.all_sum(mx.array([float(self._should_stop() or self.progress.stopped)]))
        self.progress.stopped = to_floats(asked)[0] > 0 and self.progress.steps_done < self.num_steps
        return self.progress.stopped

    def _agree(self, threads: int) -> None:
        self._lock = claim_host(self.plan, self.comm)  # held until the process ends
        self.software = agree_on(self.plan, self.comm)
        self.tell("started", world_size=self.comm.size, threads=threads, software=self.software)

    def _load(self) -> None:
        """Load model and data, attach the adapter, tell what will happen."""
        keep_little()
        trust = self.config.model.trust_remote_code
        path, tokenizer_config = str(self.plan.model_path), {"trust_remote_code": trust}
        self.model, self.tokenizer = load(path, tokenizer_config=tokenizer_config, trust_remote_code=trust, lazy=True)[:2]
        self.rows = load_rows(self.plan, self.comm, self._ticker("tokenising"))
        self.test_prompts = read_first_questions(self.plan.data_path / "test.jsonl") if self.config.style.markers else []
        attach_adapter(self.model, self.config.adapter, self.config.train.seed)
        self.num_steps = self.config.train.steps or self.config.train.epochs * self._epoch_steps
        self._connect_rooms()
        self.tell(
            "planned",
            steps=self.num_steps,
            epochs=self.num_steps / self._epoch_steps,
            rows={split: len(rows) for split, rows in self.rows.items()},
            tokens={split: rows.num_tokens for split, rows in self.rows.items()},
            trainable=count_numbers(self.model.trainable_parameters()),
            parameters=get_total_parameters(self.model),
            selective_head=self.network.is_selective,
            packed=self.network.is_packable,
            trunk=self._describe_trunk(),
        )
        if self.frozen and self._answers:
            self.frozen.put_back(self.network)  # to answer, all layers are needed

    def _connect_rooms(self) -> None:
        """Build network, step and feed, without the layers whose output is kept."""
        speed = self.config.speed
        trunk = open_trunk(self.plan, self.model, self.rows, self.comm)
        self._declined = trunk if isinstance(trunk, Declined) else None
        self.frozen: FrozenTrunk | None = None if isinstance(trunk, Declined) else trunk
        skipped = self.frozen.trunk.depth if self.frozen else 0
        self.network = Network(self.model, skipped=skipped, packing=speed.packing, use_kernels=speed.kernels)
        if self.config.train.checkpointing:
            layerwise.install_checked(self.network)
        optimizer = make_optimizer(self.config.optimizer, self.config.schedule, self.num_steps)
        self.bookmark = Bookmark(self)
        self.sentry = Sentry(self)
        self.step = TrainStep(
            self.network,
            optimizer,
            self.comm,
            self.config.optimizer.clip_norm,
            fused_loss=speed.fused_loss,
            should_stop=self._should_stop,
            wishes=self.bookmark.wishes,
        )
        self.feed = Feed(self.rows, self.config, self.comm, is_packed=self.network.is_packable, frozen=self.frozen)

    def _describe_trunk(self) -> dict[str, Any]:
        if self.frozen is None:
            return {"reason": self._declined.reason if self._declined else ""}
        samples = len(self.rows["train"]) + len(self.rows["valid"])
        size = self.frozen.store.size_bytes
        needed = min(len(self.rows["train"]), self.num_steps * self.config.train.global_batch)
        present = self.frozen.num_present
        return {"layers": self.frozen.trunk.depth, "samples": samples, "needed": needed, "present": present, "size_bytes": size}

    @property
    def _answers(self) -> bool:
        """Whether the model is asked for answers before and after."""
        return bool(self.config.style.demo_prompts or self.config.style.markers)

    @property
    def _epoch_steps(self) -> int:
        return steps_per_epoch(len(self.rows["train"]), self.config.train.global_batch)

    def _train(self) -> None:
        self.model.train()
        tell_traffic(self.comm, self.events, self.plan.network, "start")
        if self.progress.steps_done:
            self._validate_if_due(self.progress.steps_done)
        for step in range(self.progress.steps_done + 1, self.num_steps + 1):
            # dropout depends on step and rank alone, not on what ran before
            mx.random.seed(self.config.train.seed + step + 1_000_003 * self.comm.rank)
            started = time.perf_counter()
            result = self.step(self.feed.batches(step - 1, self._trunk_ticker))
            self._record(step, result, time.perf_counter() - started)
            self.sentry.look(step, result)
            self.feed.learn(result)
            if result.stop:
                self.progress.stopped = True
                break
            self._validate_if_due(step)
            is_due = result.is_applied and Keeper.grants(result.wishes)
            if is_due or step in (self.num_steps, self.progress.best_step):
                self.bookmark.keep()
            self.bookmark.tell()
        tell_traffic(self.comm, self.events, self.plan.network, "end")

    def _record(self, step: int, result: StepResult, step_s: float) -> None:
        done = self.progress
        done.steps_done = step
        done.tokens += sum(result.rank_tokens)
        done.supervised += result.num_supervised
        done.step_s += step_s
        done.comm_s += result.comm_s
        done.wait_s += result.wait_s
        if not result.is_applied:
            done.skipped += 1
            return
        self.tell(
            "step",
            step=step,
            loss=result.loss,
            learning_rate=float(self.step.optimizer.learning_rate.item()),
            grad_norm=result.grad_norm,
            tokens=sum(result.rank_tokens),
            supervised=result.num_supervised,
            step_s=step_s,
            comm_s=result.comm_s,
            wait_s=result.wait_s,
            rank_tokens_per_s=[n / s if s else 0.0 for n, s in zip(result.rank_tokens, result.rank_compute_s, strict=True)],
        )

    def _validate_if_due(self, step: int) -> None:
        """Validate after ``step`` if it is time and has not been done: a run may be stopped between step and validation."""
        every = self.config.train.eval_every
        if self.progress.validated_step != step and (step == self.num_steps or (every and step % every == 0)):
            self._validate(step)

    def _validate(self, step: int) -> None:
        """Measure the validation loss; keep the adapter if it is the best so far."""
        total, batches = self.feed.validation(self._trunk_ticker)
        tick = self._ticker("validating")
        fused = self.config.speed.fused_loss
        loss = evaluate(self.network, batches, self.comm, fused=fused, tick=lambda number: tick(number, total))
        done = self.progress
        done.last_loss, done.validated_step = loss, step
        if step == 0:
            done.first_loss = loss
        best = loss < done.best_loss
        if best:
            done.best_loss, done.best_step = loss, step
        self.tell("validated", step=step, loss=loss, best=best)
        if best and step:
            self.bookmark.note_best(is_saved=self._save("adapter", "best"))

    def _save(self, name: str, what: str) -> bool:
        """Save the adapter on every host; returns whether that was possible here. A full disk is told, and ends no run."""
        folder = self.plan.run_dir / name
        try:
            if self.comm.is_first_on_host:
                save_adapter(self.model, self.plan, folder)
        except OSError as error:
            text = f"{socket.gethostname()}: the {what} adapter could not be saved in {folder}: {error.strerror}"
            self.events.emit("notice", text=text)
            return False
        self.tell("saved", what=what, path=str(folder))
        return True

    def _finish(self) -> None:
        """Save the last adapter, answer with the best one, and report."""
        if self.progress.steps_done:
            self.bookmark.keep()
            if not self._save("checkpoints/last", "last"):
                shutil.rmtree(self.plan.run_dir / "checkpoints/last", ignore_errors=True)  # that of an earlier start is not it
            self.bookmark.close()
        if self.progress.best_step == 0 and self.progress.steps_done:
            # stopped before a validation, or never better than the base
            self.bookmark.note_best(is_saved=self._save("adapter", "last"))
        self.bookmark.save_best()
        self.comm.all_gather(None)  # the adapter is on disk before any rank reads it
        if not self.progress.stopped:
            load_adapter(self.model, self.plan.run_dir / "adapter")
            if self.frozen and self._answers:
                self.frozen.put_back(self.network)
            self._answer("after")
        self._summarise()

    def _answer(self, when: str) -> None:
        """Answer the demonstration and the test prompts, if the recipe has any."""
        if not self._answers:
            return
        self.model.eval()
        tick = self._ticker("answering")
        told = answer_all(self.model, self.tokenizer, self.config.style, self.test_prompts, self.comm, tick)
        self.tell("answered", when=when, **told)
        self.model.train()

    def _summarise(self) -> None:
        done = self.progress
        memory = self.comm.all_gather(peak_memory_mib())
        self.tell(
            "done",
            stopped=done.stopped,
            steps=done.steps_done,
            skipped=done.skipped,
            loss_before=done.first_loss,
            loss_best=done.best_loss,
            best_step=done.best_step,
            loss_last=done.last_loss,
            tokens_per_s=done.tokens / done.step_s if done.step_s else 0.0,
            supervised_tokens_per_s=done.supervised / done.step_s if done.step_s else 0.0,
            comm_share=done.comm_s / done.step_s if done.step_s else 0.0,
            wait_share=done.wait_s / done.step_s if done.step_s else 0.0,
            train_s=done.step_s,
            peak_memory_mib=memory,
        )

    def _trunk_ticker(self, done: int, total: int) -> None:
        self.tell("progress", phase="computing frozen layers", done=done, total=total)

    def _ticker(self, phase: str) -> Callable[[int, int], None]:
        """Return what tells how far a long phase has come."""
        return lambda done, total: self.tell("progress", phase=phase, done=done, total=total)

    def tell(self, kind: str, **fields: Any) -> None:
        """Tell of what is the same on all ranks, on the first one."""
        self.pulse.note(kind)
        event = self.events.make(kind, **fields)
        self.diary.note(event)
        if self.comm.rank == 0:
            self.events.write(event)
