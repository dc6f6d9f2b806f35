"""Run by `peers.py`: mlx_lm.lora as it is, with our BLAS; rank 0 keeps its own reports in a file of JSON lines.

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
REPORTS = Path(sys.argv.pop(1))
load_blas()

from mlx_lm import lora  # noqa: E402, after its BLAS
from mlx_lm.tuner.callbacks import TrainingCallback  # noqa: E402


class Keeper(TrainingCallback):
    """Keeps what mlx_lm measured of itself; its own output is full of progress bars."""

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
        if os.environ.get("OMPI_COMM_WORLD_RANK", "0") == "0":
            with REPORTS.open("a") as file:
                file.write(json.dumps(train_info) + "\n")


lora.get_reporting_callbacks = lambda *_, **__: Keeper()
lora.main()
