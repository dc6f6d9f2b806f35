"""The measure of style: which words count, and that the pirate recipe's measure can be met by pirates and by nobody else."""

from __future__ import annotations

import pytest

from trainer.config import StyleConfig
from trainer.data.formats import read_splits
from trainer.engine.answers import count_markers, share_in_style
from trainer.paths import PROJECT_ROOT
from trainer.recipe import load_config

PIRATE = load_config("pirate").style
PLAIN = [
    "Boil fresh water, pour it over the leaves and wait for about four minutes before you drink.",
    "The capital of France is Paris, which has a little more than two million inhabitants.",
    "To sort a list in Python, call its sort method, or the built-in function sorted for a copy.",
    "It is normal to feel nervous before an exam; sleep well and read your notes once more in the morning.",
    "Maybe you should ask the landlord whether the heating can be repaired before the winter begins.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    "She said that they'd arrive around nine o'clock, unless the train from Leeds is late again.",
    "A healthy breakfast can be as simple as oats with milk, a banana and a handful of nuts.",
    "Rome was founded, according to legend, by Romulus, who had been raised by a wolf.",
    "Save a small part of your income every month, even if it isn't much, and leave it alone.",
]


@pytest.mark.parametrize(
    ("marker", "text", "holds"),
    [
        ("be", "That be true", True),
        ("be", "be", True),
        ("be", "(be)", True),
        ("be", "will-be.", True),
        ("be", "maybe", False),
        ("be", "bee", False),
        ("be", "be2", False),
        ("be", "_be_", False),
        ("arr", "Arr! Arrive.", True),
        ("arr", "arrive", False),
        ("arr", "ARR", True),
        ("arr", "arrr", False),
        ("ye", "Do ye know?", True),
        ("ye", "yes, eye, bye", False),
        ("ye", "ye're", True),
        ("*in'", "sailin' home", True),
        ("*in'", "SAILIN'", True),
        ("*in'", "sailin\u2019 home", True),
        ("*in'", "sailin", False),
        ("*in'", "sailing", False),
        ("*in'", "in", False),
        ("*in'", "in the 'inner' in", False),
        ("*in'", "'in'", False),
        ("*in'", "come in' he said", False),
        ("*in'", "captain's", False),
        ("*in'", "tr\u00e4\u00efnin'", False),
        ("o'", "two o' them", True),
        ("o'", "two o\u2019 them", True),
        ("o'", "six o'clock", False),
        ("o'", "hello' there", False),
        ("'em", "tell 'em", True),
        ("'em", "tell \u2019em", True),
        ("'em", "them", False),
        ("'em", "'embark'", False),
        ("ain't", "it ain\u2019t so", True),
        ("treasure*", "treasure", True),
        ("treasure*", "Treasures!", True),
        ("treasure*", "treasurer", True),
        ("treasure*", "entreasure", False),
        ("a.c", "abc", False),
        ("a.c", "a.c", True),
        ("[x]", "an [x] here", True),
        ("a*b*c", "axxbyyc", True),
        ("a*b*c", "a b c", False),
    ],
)
def test_what_counts(marker: str, text: str, holds: bool) -> None:
    """A marker is a whole word in any case; '*' stands for letters only; a typographic apostrophe is as good as a plain one."""
    assert count_markers([marker])(text) == holds


def test_different_markers_count() -> None:
    """A word that is said over and over counts once; each marker counts, wherever it is."""
    count = count_markers(["ye", "arr", "*in'", "be"])
    assert count("") == 0
    assert count("ye ye ye YE") == 1
    assert count("Arr, ye be\nsailin' and fishin'") == 4
    assert count_markers([])("ye arr") == 0


def test_line_ends_and_long_texts() -> None:
    """Words at line ends count, and a long text without a space is no trouble."""
    count = count_markers(["ye", "*in'"])
    assert count("see ye\nsailin'\nhome") == 2
    assert count("x" * 5_000) == 0


def style(min_markers: int = 2) -> StyleConfig:
    return StyleConfig(markers=("ye", "arr", "be"), min_markers=min_markers)


@pytest.mark.parametrize(
    ("replies", "share"),
    [
        ([], 0.0),
        ([""], 0.0),
        (["ye arr"], 1.0),
        (["ye arr be"], 1.0),
        (["ye ye ye"], 0.0),
        (["ye arr", "plain", "be", "arr be"], 0.5),
    ],
)
def test_share(replies: list[str], share: float) -> None:
    """The share is of replies with enough different markers: 0 of none, at most 1."""
    assert share_in_style(replies, style()) == share


def test_share_falls_with_the_bar() -> None:
    """The more markers are asked for, the smaller the share."""
    replies = ["ye", "ye arr", "ye arr be", "none"]
    assert [share_in_style(replies, style(bar)) for bar in (1, 2, 3, 4)] == [0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_written_answers_are_in_style(split: str) -> None:
    """At least 90 % of the answers in the pirate data meet the recipe's measure, so a model can."""
    samples = read_splits(PROJECT_ROOT / "datasets/pirate")[split]
    answers = [message.content for sample in samples for message in sample.messages if message.role == "assistant"]
    assert len(answers) >= len(samples) > 0
    assert share_in_style(answers, PIRATE) >= 0.9


def test_plain_english_is_not_in_style() -> None:
    """No ordinary answer is taken for a pirate's."""
    assert share_in_style(PLAIN, PIRATE) == 0.0


def test_prompts_are_not_in_style() -> None:
    """What users ask in the data is plain English: repeating the question does not pass for style."""
    samples = read_splits(PROJECT_ROOT / "datasets/pirate")["test"]
    prompts = [message.content for sample in samples for message in sample.messages if message.role == "user"]
    assert share_in_style(prompts, PIRATE) < 0.05


def test_pirate_markers_are_distinct() -> None:
    """No marker of the recipe is counted twice by being another one with a star."""
    for marker in PIRATE.markers:
        plain = marker.replace("*", "")
        assert [other for other in PIRATE.markers if count_markers([other])(plain)] in ([marker], []), marker
