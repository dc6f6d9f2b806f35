"""One optimizer step, the loop around it, evaluation, answers and the adapters written."""

from trainer.native import load_blas

load_blas()
