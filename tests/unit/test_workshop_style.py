"""Pirate speech by rules: what changes, and above all what does not."""

# ruff: noqa: E501 - whole messages are read across

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.formats import read_splits
from trainer.engine.answers import share_in_style
from trainer.recipe import load_config
from trainer.workshop.pirate import speak
from trainer.workshop.prepare import prepare
from trainer.workshop.settings import Settings

quick = settings(deadline=None)  # no test of time


def middle(text: str) -> str:
    """Return what `speak` makes of a sentence in the middle of a text, where nothing is put before or behind it."""
    return speak(f"1. First.\n\n{text}").removeprefix("1. First.\n\n")


@pytest.mark.parametrize(
    ("plain", "spoken"),
    [
        ("You are my friend and I am yours.", "Ye be me matey an' I be yers."),
        ("It is old. It's the end of it.", "'Tis ol'. 'Tis the end o' it."),
        ("They're sailing, singing and bringing them home.", "They be sailin', singin' an' bringin' 'em home."),
        ("Is this the king's ring? Nothing is.", "Be this the king's ring? Nothing be."),
        ("There are three. That isn't for you.", "There be three. That ain't fer ye."),
        ("No, never! No ship came.", "Nay, ne'er! No ship came."),
        ("Hello, sir.", "Ahoy, cap'n."),
        ("I’m sure you’re right.", "I be sure ye be right."),
        ("Your yard is yours.", "Yer yard be yers."),
        ("The island is forlorn; foreign offerings.", "The island be forlorn; foreign offerings."),
    ],
)
def test_words_change(plain: str, spoken: str) -> None:
    """Whole words of the list, with their capitals; parts of words stay."""
    assert middle(plain) == spoken


KEPT = [
    "`for x in my_list: is_ok(x)`",
    "```python\nfor you in my:  # and is\n    return of\n```",
    "~~~\nyou are\n~~~",
    "https://example.org/you/and?is=for#my",
    "www.for-you-and-me.com",
    "for.and@you.com",
    "3.14159, 1,000 and 2e-5".split(" and", maxsplit=1)[0],
    "my_file.txt",
    "src/for/you.py",
    "/home/you/my/file",
    "C:\\you\\and\\me",
    "$is = of + for$",
    "\\(you \\and my\\)",
    "$$for \\; you$$",
    '"you and your friends"',
    "“you are my friend”",
    "[YOUR-NAME]",
    "{your_name}",
    "<you and='my'>",
    "AND, FOR and IS".split(" and", maxsplit=1)[0],
    "Beijing",
    "King of England",
    "Lord of the Rings",
    "Of Mice and Men",
    "Dr. Will Ing",
    "`you`",
]


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("frame", ["Write {} here.", "You see {}, and your work is done.", "{}", "- {}\n- and more"])
def test_code_numbers_names_and_links_are_unharmed(kept: str, frame: str) -> None:
    """Wherever they stand, they come out letter by letter."""
    assert kept in speak(frame.format(kept))


def test_a_link_keeps_its_target_and_tells_its_text() -> None:
    """Of a Markdown link the words are spoken, the address is not."""
    assert middle("See [your guide](https://a.b/your).") == "See [yer guide](https://a.b/your)."


def test_tables_lists_and_headings_keep_their_form() -> None:
    """No line is added or lost, and what begins a line still begins it."""
    text = "# You and me\n\n| is | for |\n|---|---|\n| 1 | 2 |\n\n- you\n- my\n\n1. is\n2. of\n"
    assert re.findall(r"^[^A-Za-z]*", speak(text), re.MULTILINE) == re.findall(r"^[^A-Za-z]*", text, re.MULTILINE)


def test_indented_code_is_code() -> None:
    """Four spaces or a tab, as Markdown has it."""
    assert middle("So:\n\n    for you in my:\n\tis and of\n\nIt is.") == "So:\n\n    for you in my:\n\tis and of\n\n'Tis."


pieces = st.lists(
    st.sampled_from([*KEPT, "you", "and", "is", "The ship", ".", "\n", "\n\n", " ", "é", "漢", "for", "singing"]), max_size=12
)


@quick
@given(pieces.map(" ".join))
def test_digits_and_code_survive_any_mixture(text: str) -> None:
    """All digits, all fenced and inline code and all addresses of a text are in its speech, in their order; twice gives the same."""
    spoken = speak(text)
    for pattern in (r"\d+", r"```[^`]*```", r"(?<!`)`[^`\n]+`(?!`)", r"https?://\S+"):
        assert re.findall(pattern, spoken) == re.findall(pattern, text)
    assert speak(text) == spoken


@quick
@given(st.text(max_size=80))
def test_any_text_can_be_spoken(text: str) -> None:
    """Nothing raises, no line is lost, and other alphabets stay."""
    spoken = speak(text)
    assert spoken.count("\n") == text.count("\n")
    assert [c for c in spoken if ord(c) > 0x2FF] == [c for c in text if ord(c) > 0x2FF]


PLAIN = [
    "You can boil the eggs for ten minutes, and then put them in cold water. It is easy, and you will like it.",
    "The capital of France is Paris. There are many museums, and you are never far from one of them.",
    "You should ask your doctor for advice, my friend. They are trained for it, and it is free for you.",
    "Yes, you are right. The sum of two and two is four, and that is the end of it, my friend.",
]


def test_the_recipe_recognises_the_style() -> None:
    """Plain answers are not in style, their speech is, by the pirate recipe's own measure."""
    style = load_config("pirate").style
    assert share_in_style(PLAIN, style) == 0
    assert share_in_style([speak(text) for text in PLAIN], style) == 1


def test_a_data_set_is_put_into_style(tmp_path: Path) -> None:
    """Answers change, questions and system messages do not."""
    import json

    source = tmp_path / "a.jsonl"
    source.write_text(
        "".join(
            json.dumps({"system": f"You are {n}.", "prompt": f"Who are you, {n}?", "completion": text}) + "\n"
            for n, text in enumerate(PLAIN)
        )
    )
    manifest = prepare([source], tmp_path / "out", Settings(style="pirate", skip=("near",)))
    assert manifest["changed"] == {"spoken as pirate": {"count": 4, "examples": [f"{source}:{n}" for n in range(1, 5)]}}
    for samples in read_splits(tmp_path / "out").values():
        for sample in samples:
            system, question, answer = (message.content for message in sample.messages)
            number = int(re.findall(r"\d", system)[0])
            assert (system, question) == (f"You are {number}.", f"Who are you, {number}?")
            assert answer == speak(PLAIN[number])


@pytest.mark.parametrize("frame", ["Write {} here.", "You see {}, and your work is done.", "{}", "- {}\n- and more"])
@pytest.mark.parametrize(
    "kept",
    ["example.com/for", "github.com/friend", "my.org:8080/is?of=for", "@friend", "#friend", "--for=ready", "--of-my", "-f", "b = 'for you'",
     "a is null and b = 'for you'", "for i in range(10):", "print(my, 'for you')", "['for', 'you']", "mode=yes", "My Fair Lady", "Hello Kitty"],
)  # fmt: skip
def test_code_within_a_sentence_and_names_are_unharmed(kept: str, frame: str) -> None:
    """Options, conditions, calls, addresses without a scheme, names at a sentence's beginning."""
    assert kept in speak(frame.format(kept))


@pytest.mark.parametrize(
    "line",
    ["for friend in my:", "for i, old in enumerate(friends): print(old)", "if x is None and y == 'for you':", "while is_ok(my):", "elif my:", "else:", "try:",
     "def my(of, is):", "async def my(you: int) -> friend:", "class Friend(Old):", "with open(my) as friend:", "except ValueError as is:", "x = my + your",
     "my.friend: int = of", "let friend = your(of);", "my $friend = 5;", "print(my, of)", "friend.for(you).of(my)", "return friend", "return of(my);",
     "if (is && my) {", "} else if (for) {", "for (let i = 0; i < my; i++) {", "friends.map(my => my.is);", "private static final int my = of;",
     "letter-spacing: normal;", "SELECT my FROM friends WHERE old = 'of'", "$ ls my", ">>> my", "import my", "from my import friend", "// for you"],
)  # fmt: skip
def test_lines_that_look_like_code_are_code(line: str) -> None:
    """By their first word, their end, or as an assignment or a call; with prose around them or none."""
    assert speak(line) == line
    assert middle(f"It is:\n{line}\nYou see.") == f"'Tis:\n{line}\nYe see."


@pytest.mark.parametrize(
    ("plain", "spoken"),
    [
        ("for example:", "fer example:"),
        ("if you are my friend:", "if ye be me matey:"),
        ("with my friend:", "with me matey:"),
        ("for your friend {name}", "fer yer matey {name}"),
        ("- return it to your friend;", "- return it to yer matey;"),
        ('it is, "he said" -> (of you and my friend);', "'tis, \"he said\" -> (o' ye an' me matey);"),
        ("The friend(s) of you", "The matey(s) o' ye"),
        ("E = mc^2 is for you.", "E = mc^2 be fer ye."),
        ("Well, it -and you know it- is old.", "Well, it -an' ye know it- be ol'."),
        ("Is Paris old? It is Monday. You are Captain.", "Be Paris ol'? 'Tis Monday. Ye be Captain."),
        ("Mr. Friend is old, i.e. Old. Old ships.", "Mr. Friend be ol', i.e. Old. Ol' ships."),
        ("No. 5 is old. No. You are.", "No. 5 be ol'. Nay. Ye be."),
    ],
)
def test_prose_that_only_resembles_code_is_spoken(plain: str, spoken: str) -> None:
    """Colons, semicolons, brackets and signs make no code of a sentence; a number is no denial."""
    assert middle(plain) == spoken


@pytest.mark.parametrize(
    "short",
    ["Apple Inc.", "Ask Mrs.", "He, Prof.", "Ropes, etc.", "Red vs.", "See No.", "See Dr.", "At St.", "See e.g.", "Tea, i.e."],
)
def test_no_address_is_put_after_an_abbreviation(short: str) -> None:
    """It comes behind the first sentence that ends: of 60 texts none has it before."""
    spoken = [speak(f"{short} Brown had {number} ships. They sailed.") for number in range(60)]
    assert all(f"{short} Brown had " in text for text in spoken)
    assert any(", matey." in text for text in spoken)
