"""`data.show`: samples as the model sees them, with what is learned set apart."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.text import Text

from trainer.data.formats import Problem, Sample, scan_samples
from trainer.data.tokens import RowMaker, TokenRow
from trainer.errors import InputError

LEARNED_STYLE = "bold green"


def choose_samples(files: Iterable[Path], count: int, seed: int, line: int = 0) -> list[Sample]:
    """Return ``count`` samples by chance, or those of one line; in the order in which they stand.

    Vitter, "Random sampling with a reservoir", 1985: one pass, in the memory of what is returned.
    """
    chance = random.Random(seed)  # noqa: S311 - no secret
    kept: list[tuple[int, Sample]] = []
    number = 0
    for found in itertools.chain.from_iterable(map(scan_samples, files)):
        if isinstance(found, Problem):
            if found.line == 0 or (line and found.line == line):
                raise InputError(str(found))
            continue
        if line:
            kept += [(number, found)] if found.line == line else []
        elif len(kept) < count:
            kept.append((number, found))
        elif (place := chance.randrange(number + 1)) < count:
            kept[place] = (number, found)
        number += 1
    if not kept:
        raise InputError(f"there is no sample on line {line}" if line else "there is no sample to show; data.check tells why")
    return [sample for _, sample in sorted(kept, key=lambda pair: pair[0])]


def show_samples(samples: list[Sample], tokenizer: Any, *, is_plain: bool) -> Iterator[Text]:
    """Yield for each sample a heading and the template's text; what is learned is coloured, or in ⟦brackets⟧ if plain."""
    for sample, row in zip(samples, RowMaker(tokenizer).make(samples), strict=True):
        if isinstance(row, ValueError):
            yield Text(f"{sample.where}  cannot be learned from: {row}", style="bold red")
            continue
        heading = f"{sample.where}  {len(row)} tokens, {row.num_supervised} learned"
        yield Text.assemble((heading, "bold"), "\n", *_mark(row, tokenizer, is_plain), "\n")


def _mark(row: TokenRow, tokenizer: Any, is_plain: bool) -> Iterator[tuple[str, str]]:
    pairs = zip(row.supervised.tolist(), row.tokens.tolist(), strict=True)
    for is_learned, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
        text = tokenizer.decode([token for _, token in group], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        text = "".join(c if c.isprintable() or c == "\n" else "�" for c in text)
        if is_learned:
            yield (f"⟦{text}⟧" if is_plain else text, LEARNED_STYLE)
        else:
            yield (text, "dim")
