"""Where models come from, the LoRA layers put on them, and the loss of a batch."""

from trainer.native import load_blas

load_blas()
