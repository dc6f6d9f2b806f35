"""Run by mpirun for `peers.py`: mlx_lm.lora as it is, with our BLAS, and its own reports printed as JSON lines.

python run_mlx_lm.py THREADS --config FILE
"""

from __future__ import annotations

import json
import sys
from typing import Any

from trainer.native import load_blas, set_threads

set_threads(int(sys.argv.pop(1)))
load_blas()

from mlx_lm import lora  # noqa: E402, after its BLAS
from mlx_lm.tuner.callbacks import TrainingCallback  # noqa: E402


class Printer(TrainingCallback):
    """Prints what mlx_lm measured of itself."""

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
        print(json.dumps(train_info), flush=True)


lora.get_reporting_callbacks = lambda *_, **__: Printer()
lora.main()
