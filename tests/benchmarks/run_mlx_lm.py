"""Run by `peers.py`: mlx_lm.lora as it is, with our BLAS; each rank keeps reports and its peak memory in a file of JSON lines.

python run_mlx_lm.py THREADS REPORTS --config FILE
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from trainer.native import load_blas, set_threads

set_threads(int(sys.argv.pop(1)))
RANK = os.environ.get("OMPI_COMM_WORLD_RANK", "0")
REPORTS = Path(sys.argv.pop(1)).with_suffix(f".{RANK}.jsonl")
load_blas()

from mlx_lm import lora  # noqa: E402, after its BLAS
from mlx_lm.tuner.callbacks import TrainingCallback  # noqa: E402

from trainer.engine.memory import peak_memory_mib  # noqa: E402


class Keeper(TrainingCallback):
    """Keeps what mlx_lm measured of itself; its own output is full of progress bars."""

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
        with REPORTS.open("a") as file:
            file.write(json.dumps({**train_info, "peak_memory_mib": peak_memory_mib()}) + "\n")


lora.get_reporting_callbacks = lambda *_, **__: Keeper()
lora.main()
