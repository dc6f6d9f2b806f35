"""The only door to MPI and `mx.distributed`: connecting, agreeing, reducing, aborting."""

from trainer.native import load_blas

load_blas()
