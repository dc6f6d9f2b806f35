"""The rooms keep to the direction that docs/architecture.md draws."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from trainer.paths import PROJECT_ROOT


def test_import_contracts_hold() -> None:
    """import-linter finds no import against the direction of the rooms, and no MLX on the control side."""
    lint = Path(sys.executable).with_name("lint-imports")
    shown = subprocess.run([lint, "--no-cache"], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stdout


def test_the_control_side_starts_without_mlx() -> None:
    """Importing all that `./inv train` uses before it starts a process loads neither MLX, MPI nor transformers."""
    program = (
        "import sys, tasks, trainer.control\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'mlx', 'mlx_lm', 'mpi4py', 'transformers', 'torch'}))"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


def test_datasets_is_no_package() -> None:
    """`datasets` belongs to another distribution: ours must never become importable under that name."""
    assert not list((PROJECT_ROOT / "datasets").rglob("__init__.py"))
