"""Small real things that several tests need: a tiny model folder, a tiny data set, and runs of real ranks."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.cluster.hostfile import render_open_mpi
from trainer.cluster.inventory import Cluster, Host
from trainer.cluster.launch import Inputs, execute, plan_run
from trainer.cluster.openmpi import find_open_mpi
from trainer.cluster.outcome import Line, Outcome
from trainer.cluster.plan import Launch, Tools, mpirun_command, rank_environment
from trainer.cluster.supervise import Supervisor
from trainer.data.formats import SPLITS
from trainer.events import Event
from trainer.fingerprint import hash_files, hash_model
from trainer.paths import PROJECT_ROOT
from trainer.recipe import load_config

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write_tiny_model(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a Llama of three layers with random weights and a byte-level tokenizer; returns ``folder``."""
    from trainer.native import load_blas

    load_blas()
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models.llama import Model, ModelArgs

    folder.mkdir(parents=True)
    settings: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": 259,
        "tie_word_embeddings": True,
        "max_position_embeddings": 512,
        "eos_token_id": 2,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    mx.random.seed(seed)
    model = Model(ModelArgs.from_dict(settings))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})
    _write_tokenizer(folder)
    return folder


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    wrapped.chat_template = CHATML
    wrapped.save_pretrained(folder)


def write_tiny_data(folder: Path, rows: int = 24, seed: int = 0) -> Path:
    """Write chat samples of very different lengths into the three splits of ``folder``; returns it."""
    folder.mkdir(parents=True)
    random_text = random.Random(seed)
    for split in SPLITS:
        lines = []
        for index in range(rows if split == "train" else 5):
            question = f"{split} {index} " + "ask " * random_text.randint(0, 4)
            answer = "aye " * random_text.randint(1, 12)
            turns = [{"role": "user", "content": question.strip()}, {"role": "assistant", "content": answer.strip()}]
            lines.append(json.dumps({"messages": turns}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@dataclass
class Log:
    """A watcher that keeps everything."""

    events: list[Event] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def on_line(self, line: Line) -> None:
        self.lines.append(line)

    def of(self, kind: str) -> list[Event]:
        """Return the events of one kind in order."""
        return [event for event in self.events if event["event"] == kind]


def local_cluster(slots: int) -> Cluster:
    """Return this machine with ``slots`` ranks."""
    return Cluster(hosts=(Host(name="here", slots=slots, management="localhost", is_local=True),))


def plan_tiny(model: Path, data: Path, runs: Path, num_ranks: int, *overrides: str) -> Launch:
    """Return a launch of the trainer on ``num_ranks`` local ranks for a tiny model and data set."""
    plain = ["style.markers=[]", "style.demo_prompts=[]", "adapter.num_layers=2", "adapter.rank=4"]
    settings = [f"model.source={model}", f"data.path={data}", "schedule.warmup_steps=0", *plain, *overrides]
    inputs = Inputs(cluster=local_cluster(num_ranks), config=load_config("pirate", settings), data=data, name="tiny")
    fingerprints = {"model": hash_model(model), "data": hash_files(data, [f"{split}.jsonl" for split in SPLITS])}
    return plan_run(inputs, model, fingerprints, runs)


def run(launch: Launch) -> tuple[Outcome, Log]:
    """Execute a launch and return how it ended and what it said."""
    log = Log()
    return execute(launch, log), log


def with_program(launch: Launch, script: Path) -> Launch:
    """Return ``launch`` running ``script`` instead of ``-m trainer``, with the same arguments behind it."""
    start = launch.argv.index("-m")
    argv = (*launch.argv[:start], str(script), *launch.argv[start + 2 :])
    return Launch(plan=launch.plan, kept=launch.kept, argv=argv, env=launch.env, files=launch.files)


def run_script(num_ranks: int, script: Path, *arguments: str, scratch: Path) -> Outcome:
    """Run a Python program on ``num_ranks`` local ranks with the launcher's own options; returns how it ended."""
    tools = Tools(mpi=find_open_mpi(), python=Path(sys.executable), project_root=PROJECT_ROOT, is_root=os.geteuid() == 0)
    hostfile = scratch / f"hostfile-{num_ranks}"
    hostfile.write_text(render_open_mpi(local_cluster(num_ranks)))
    command = mpirun_command(local_cluster(num_ranks), tools, hostfile, scratch / "session", rank_environment(tools))
    log = Log()
    outcome = Supervisor(log.on_event, log.on_line).run([*command, str(script), *arguments], {})
    assert outcome.exit_code == 0, [line.text for line in log.lines]
    return outcome


def peak_of(compute: Callable[[], object]) -> int:
    """Return the bytes that MLX holds at most while ``compute`` runs for the second time, beyond what it held before."""
    import gc

    import mlx.core as mx

    compute()
    gc.collect()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    compute()
    return mx.get_peak_memory() - before
