"""Loading a model's tokenizer, and what workers do with one.

Other modules name the workers of this one as text (`trainer.workers`): so the control side, which starts them, imports no
transformers itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.data.fill import PartJob, PartReport, make_part
from trainer.data.tokens import RowMaker
from trainer.errors import InputError


def load_tokenizer(model: Path, trust_remote_code: bool = False) -> Any:
    """Return the Hugging Face tokenizer of a model's folder; raises `InputError` where there is none."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # we know that there is no PyTorch here
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(model), trust_remote_code=trust_remote_code)
    except (ValueError, OSError, KeyError, TypeError, ImportError) as error:
        raise InputError(f"{model}: its tokenizer cannot be loaded: {error}") from error


def make_part_worker(model: Path, trust_remote_code: bool) -> Callable[[PartJob], PartReport]:
    """Return what makes one part of a token store with the tokenizer of a model's folder."""
    tokenizer = load_tokenizer(model, trust_remote_code)
    is_narrow = max(tokenizer.get_vocab().values(), default=0) < 1 << 16
    maker = RowMaker(tokenizer)
    return lambda job: make_part(job, maker, "<u2" if is_narrow else "<i4")
