"""What `data.prepare` is asked for: the steps and their settings, each with its default here and nowhere else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import InputError
from trainer.schema import suggest
from trainer.workshop.forms import FORMS
from trainer.workshop.near import THRESHOLD
from trainer.workshop.pirate import STYLES

STEPS = {  # in the order in which they run; what can be skipped
    "characters": "control characters go, line breaks become one kind, Unicode its composed form",
    "identical": "drop samples whose answer repeats the question or an earlier answer",
    "refusals": "drop answers that refuse, speak of being a language model, or are boilerplate",
    "personal": "mask personal data and secrets, or drop what holds them",
    "language": "drop samples in another language than --language",
    "length": "count tokens with the recipe's model; split what is too long at turns, drop what cannot be",
    "exact": "of samples with the same words, keep one",
    "near": "of samples that resemble each other, keep one",
    "balance": "keep at most --balance times the median of a category",
    "leaks": "keep what resembles each other, or asks the same, in one split",
}
PERSONAL = ("mask", "drop")
OVERLONG = ("split", "drop")


def complain_of_near(near: float) -> list[str]:
    """Return what is wrong with a resemblance from which samples are near duplicates."""
    return [] if 0 < near <= 1 else [f"--near {near}: is a resemblance above 0, at most 1"]


def complain_of_region(region: str) -> list[str]:
    """Return what is wrong with the country of telephone numbers: with one that is none, no number would be found."""
    import phonenumbers

    if region in phonenumbers.SUPPORTED_REGIONS:
        return []
    return [f"--region {region}: is no country in two letters (ISO 3166), such as DE or GB"]


def _complain_of_language(language: str) -> list[str]:
    """Return what is wrong with the language to keep: of one that is never found, nothing would be kept."""
    from trainer.workshop.rules import list_languages

    if language in list_languages():
        return []
    return [f"--language {language}: is no language that is recognised, in two or three letters (ISO 639), such as en or de"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that decides what becomes of a source; `trainer.data_tasks` explains each on the command line."""

    mapping: tuple[tuple[str, str], ...] = ()
    form: str = ""
    system: str = ""
    style: str = ""
    skip: tuple[str, ...] = ()
    personal: str = PERSONAL[0]
    region: str = "US"
    language: str = ""
    max_tokens: int = 0  # 0: not counted
    overlong: str = OVERLONG[0]
    near: float = THRESHOLD
    balance: float = 0.0  # 0: as many as there are
    valid: float = 0.05
    test: float = 0.05
    seed: int = 0
    licence: str = "unknown"

    def __post_init__(self) -> None:
        object.__setattr__(self, "region", self.region.upper())  # frozen for all others
        object.__setattr__(self, "language", self.language.lower())
        problems = [
            f"--skip {step}: is not one of {', '.join(STEPS)}{suggest(step, STEPS)}" for step in self.skip if step not in STEPS
        ]
        for name, value, allowed in (
            ("form", self.form, ("", *FORMS)),
            ("to", self.style, ("", *STYLES)),
            ("personal", self.personal, PERSONAL),
            ("overlong", self.overlong, OVERLONG),
        ):
            if value not in allowed:
                problems.append(f"--{name} {value}: is not one of {', '.join(filter(None, allowed))}{suggest(value, allowed)}")
        if not (self.valid > 0 and self.test > 0 and self.valid + self.test < 1):
            problems.append(f"--valid {self.valid} --test {self.test}: are shares above 0 that leave something for train")
        problems += [*complain_of_near(self.near), *complain_of_region(self.region)]
        if not (self.balance == 0 or 1 <= self.balance < math.inf):
            problems.append(f"--balance {self.balance}: is at least 1, or 0 for no limit")
        if self.language:
            problems += _complain_of_language(self.language)
        if problems:
            raise InputError(problems)

    def does(self, step: str) -> bool:
        """Whether a step is to run."""
        wanted = {"language": bool(self.language), "length": bool(self.max_tokens), "balance": bool(self.balance)}
        return step not in self.skip and wanted.get(step, True)


@dataclass(frozen=True, kw_only=True)
class Model:
    """The tokenizer that samples are counted with."""

    folder: Path
    trust_remote_code: bool = False
