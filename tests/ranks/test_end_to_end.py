"""The commands that a newcomer types, on the bundled model: train, chat, fuse, and mlx_lm's own tools on the result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.cluster.launch import read_plan
from trainer.paths import PROJECT_ROOT

PROMPT = "Why is the sky blue?"
MAX_TOKENS = "24"


def invoke(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a task from a folder that is not the project's."""
    command = [sys.executable, "-P", "-m", "invoke", "--search-root", str(PROJECT_ROOT), *arguments]
    env = {**os.environ, "FLOTILLA_RUNS": str(cwd / "runs")}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env=env)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Return the run's folder and what `train` printed, after four steps of the default recipe on a few rows."""
    folder = tmp_path_factory.mktemp("newcomer")
    data = folder / "few"
    data.mkdir()
    for split in ("train", "valid", "test"):
        rows = (PROJECT_ROOT / "datasets" / "pirate" / f"{split}.jsonl").read_text("utf-8").splitlines(keepends=True)
        (data / f"{split}.jsonl").write_text("".join(rows[:16] if split == "train" else rows[:3]), "utf-8")
    options = ["train.steps=4", "schedule.warmup_steps=0", "data.path=few", "style.max_reply_tokens=12"]
    shown = invoke("train", "--name", "newcomer", *(word for o in options for word in ("-o", o)), cwd=folder)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    [line] = [line for line in shown.stderr.splitlines() if line.startswith("run ")][-1:]
    return Path(line.removeprefix("run ")), shown


def test_train_leaves_a_complete_run(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """The run's folder holds all that the documents promise, and the summary's figures are those of the events."""
    run_dir, _ = trained
    report = ("report.html", "plots/loss.png")
    for name in ("plan.json", "hostfile", "config.toml", "metrics.jsonl", "summary.json", "logs", *report):
        assert (run_dir / name).exists(), name
    events = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text("utf-8").splitlines()]
    losses = [event["loss"] for event in events if event["event"] == "validated"]
    summary = json.loads((run_dir / "summary.json").read_text("utf-8"))
    assert summary["exit_code"] == 0
    assert summary["loss_before"] == losses[0]
    assert summary["loss_best"] == min(losses)
    assert summary["steps"] == len([event for event in events if event["event"] == "step"]) == 4
    assert summary["answers"][0]["prompt"] == "Tell me about greek and roman history like a pirate"
    assert (run_dir.parent / "latest").resolve() == run_dir


def test_train_tells_the_story_on_stderr_and_the_result_on_stdout(
    trained: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """Without a terminal: plain lines without escape codes, the last step among them; the table and answers on stdout."""
    _, shown = trained
    assert "2 ranks connected and agreed, " in shown.stderr
    assert "step 4/4  loss " in shown.stderr
    assert "validation loss" in shown.stdout
    assert "peak memory" in shown.stdout
    assert "\x1b" not in shown.stdout + shown.stderr


def test_report_makes_the_page_again(trained: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    """`./inv report` prints the path of the page on stdout, and nothing else; `train` has said it on stderr."""
    run_dir, shown = trained
    page = run_dir / "report.html"
    assert f"\nreport {page}\n" in shown.stderr
    page.unlink()
    again = invoke("report", "--run", str(run_dir), cwd=tmp_path)
    assert (again.returncode, again.stdout, again.stderr) == (0, f"{page}\n", "")
    assert "<!doctype html>" in page.read_text("utf-8")


def test_chat_and_mlx_lm_give_the_same_greedy_text(
    trained: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """`mlx_lm.generate` with our converted model and adapter answers word for word as `./inv chat` does."""
    run_dir, _ = trained
    ours = invoke("chat", "--run", str(run_dir), "--prompt", PROMPT, "--max-tokens", MAX_TOKENS, cwd=tmp_path)
    assert ours.returncode == 0, ours.stderr
    plan = read_plan(run_dir)
    command = [Path(sys.executable).with_name("mlx_lm.generate"), "--model", str(plan.model_path), "--prompt", PROMPT]
    command += ["--adapter-path", str(run_dir / "adapter"), "--max-tokens", MAX_TOKENS, "--temp", "0", "--verbose", "False"]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MLX_", "OPENBLAS_"))}  # a plain shell's
    env["HF_HUB_OFFLINE"] = "1"
    theirs = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert ours.stdout.strip() == theirs.stdout.strip()
    assert len(ours.stdout.split()) > 5
    base = invoke("chat", "--run", str(run_dir), "--base", "--prompt", PROMPT, "--max-tokens", MAX_TOKENS, cwd=tmp_path)
    assert base.stdout != ours.stdout


def test_chat_holds_a_conversation(trained: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    """Messages on standard input are answered one after the other; /new and /quit are obeyed."""
    run_dir, _ = trained
    command = [
        sys.executable,
        "-m",
        "invoke",
        "--search-root",
        str(PROJECT_ROOT),
        "chat",
        "--run",
        str(run_dir),
        "--max-tokens",
        "4",
    ]
    talk = subprocess.run(command, input="Hello\n\n/new\nHello\n/quit\nHello\n", capture_output=True, text=True, cwd=tmp_path)
    assert talk.returncode == 0, talk.stderr
    first, second = talk.stdout.splitlines()
    assert first == second != ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run", "nowhere"], "{cwd}/nowhere: there is no run here; ./inv train makes one\n"),
        (["--model", "nowhere"], "--model nowhere: there is no model here (no config.json); give a model's folder\n"),
    ],
)
def test_chat_with_nothing_is_told(tmp_path: Path, options: list[str], message: str) -> None:
    """A run or a model that does not exist: exit 2 and what to do."""
    shown = invoke("chat", *options, cwd=tmp_path)
    assert (shown.returncode, shown.stderr) == (2, message.format(cwd=tmp_path))


def test_fuse_makes_one_model(trained: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    """`./inv fuse` writes a model that answers like base and adapter together; a folder in use is refused."""
    run_dir, _ = trained
    fused = tmp_path / "fused"
    shown = invoke("fuse", "--run", str(run_dir), "--out", str(fused), cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert (fused / "model.safetensors").is_file()
    options = ("--prompt", PROMPT, "--max-tokens", "8")
    one = invoke("chat", "--model", str(fused), *options, cwd=tmp_path)
    two = invoke("chat", "--run", str(run_dir), *options, cwd=tmp_path)
    assert one.stdout == two.stdout
    again = invoke("fuse", "--run", str(run_dir), "--out", str(fused), cwd=tmp_path)
    assert again.returncode == 2
    assert again.stderr == f"{fused}: exists already; give another folder with --out, or remove it first\n"


def test_dry_run_starts_and_writes_nothing(tmp_path: Path) -> None:
    """--dry-run prints hostfile, configuration, plan and command, and makes no folder."""
    shown = invoke("train", "--dry-run", "-o", "train.steps=7", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    for heading in (
        "# run folder",
        "# hostfile\nlocalhost slots=2\n",
        "# config.toml",
        "steps = 7",
        "# plan.json",
        "# command\n/",
    ):
        assert heading in shown.stdout
    assert not list(tmp_path.iterdir())
