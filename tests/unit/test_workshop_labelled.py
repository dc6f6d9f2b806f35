"""Near duplicates, leaks and secrets, planted among what only looks like them: found and nothing else, 95 in 100 at the least.

The labelled sets are made by seeded construction on top of the pirate data, whose conversations differ from each other.
"""

# ruff: noqa: E501 - tables of texts are read across

from __future__ import annotations

import base64
import ipaddress
import itertools
import json
import random
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from trainer.data.formats import SPLITS, Message, read_splits
from trainer.paths import PROJECT_ROOT
from trainer.workshop.check import check
from trainer.workshop.near import THRESHOLD, Signer, Spoken, find_pairs, normalise, resemble, shingle
from trainer.workshop.personal import Found, find_personal, mask
from trainer.workshop.rules import find_refusals

PIRATE = PROJECT_ROOT / "datasets/pirate"
LEAST = 0.95


def score(expected: set[Any], found: set[Any]) -> tuple[float, float]:
    """Return recall and precision."""
    hits = len(expected & found)
    return hits / len(expected), hits / len(found) if found else 0.0


def pirate_texts() -> list[list[str]]:
    """Return question and answer of the pirate conversations of one turn and a fair length."""
    samples = [sample for split in SPLITS for sample in read_splits(PIRATE)[split]]
    turns = [[m.content for m in sample.messages if m.role != "system"] for sample in samples]
    return [pair for pair in turns if len(pair) == 2 and len(pair[1].split()) >= 25]


def respell(text: str, chance: random.Random) -> str:
    """Return a near duplicate: other layout, case and punctuation, a word exchanged, gone or put in at one or two places."""
    words = text.split()
    for _ in range(min(chance.randint(1, 2), len(words) - 1)):
        place = chance.randrange(len(words))
        words[place : place + 1] = chance.choice(([], ["truly"], [words[place], "indeed"]))
    text = " ".join(words)
    return chance.choice((text, text.upper(), text.replace(", ", "  "), text.replace(" ", "\n", 3), f"« {text} »"))


def rewrite(text: str, chance: random.Random) -> str:
    """Return what is no near duplicate, though it begins alike: most of its words are others."""
    words = text.split()
    rest = words[len(words) // 3 :]
    chance.shuffle(rest)
    return " ".join(words[: len(words) // 3] + rest)


def write_labelled(folder: Path, seed: int) -> dict[str, set[str]]:
    """Write a data set with planted repeats; return the places that are near duplicates, and those that are leaks."""
    chance = random.Random(seed)
    texts = pirate_texts()
    chance.shuffle(texts)
    base, spare = texts[:400], texts[400:480]
    rows = {
        "train": [list(pair) for pair in base],
        "valid": [list(pair) for pair in spare[:40]],
        "test": [list(pair) for pair in spare[40:]],
    }
    near, leaks = set(), set()
    for one in chance.sample(base, 100):  # within train
        rows["train"].append([respell(one[0], chance), respell(one[1], chance)])
        near.add(f"train.jsonl:{len(rows['train'])}")
    for one in chance.sample(base, 100):  # in another split
        name = chance.choice(("valid", "test"))
        rows[name].append(
            [respell(one[0], chance), respell(one[1], chance)]
            if chance.random() < 0.7
            else [one[0].lower(), "Aye, " + spare[0][1]]
        )
        leaks.add(f"{name}.jsonl:{len(rows[name])}")
    for one in chance.sample(base, 150):  # only looks alike
        rows["train"].append(
            [f"{chance.choice('abcdefgh')} {rewrite(one[0], chance)} {chance.random()}", rewrite(one[1], chance)]
        )
    for name in SPLITS:
        lines = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in rows[name]]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return {"near-duplicate": near, "leak": leaks}


@pytest.mark.parametrize("seed", [1, 2])
def test_near_duplicates_and_leaks_are_found_and_nothing_else(seed: int, tmp_path: Path) -> None:
    """Of 100 near duplicates and 100 leaks among 150 lookalikes: recall and precision at least 95 %."""
    labels = write_labelled(tmp_path, seed)
    found: dict[str, set[str]] = {"near-duplicate": set(), "leak": set()}
    for finding in check(tmp_path, near=THRESHOLD, region="US"):
        rule = finding.rule if finding.rule == "leak" else "near-duplicate"
        found[rule].add(f"{finding.path.name}:{finding.line}")
    for rule, expected in labels.items():
        recall, precision = score(expected, found[rule])
        assert recall >= LEAST, (rule, recall)
        assert precision >= LEAST, (rule, precision)


@settings(deadline=None)
@given(st.lists(st.sampled_from(list("abcdefghij")), min_size=1, max_size=40), st.integers(0, 39))
def test_signatures_estimate_resemblance(words: list[str], place: int) -> None:
    """Equal texts share all bands; texts with no word pair in common share none."""
    text = " ".join(words)
    other = " ".join(f"{word}x" for word in words)
    one, same, none = Signer().sign([text, text, other])
    assert np.array_equal(one, same)
    assert not (one == none).any()


def test_every_pair_above_the_threshold_is_found_whatever_the_order() -> None:
    """Against all pairs compared one by one, on 400 texts with families of relatives: none is missed, none is made up."""
    chance = random.Random(5)
    texts = [normalise(" ".join(pair)) for pair in pirate_texts()[:250]]
    texts += [normalise(respell(chance.choice(texts), chance)) for _ in range(150)]
    sets = [shingle(text) for text in texts]
    expected = {(i, j) for j in range(len(sets)) for i in range(j) if resemble(sets[i], sets[j]) >= THRESHOLD}
    for order in (np.arange(len(texts)), np.random.default_rng(0).permutation(len(texts))):
        bands = Signer().sign(texts)
        found = find_pairs(lambda band, bands=bands: bands[:, band], order, lambda row: Spoken(texts[row]))
        assert all(order[one] < order[two] for one, two in found)
        recall, precision = score(expected, {(min(pair), max(pair)) for pair in found})
        assert precision == 1
        assert recall >= LEAST


def fence(which: str) -> str:
    """Return the first or last line of a key's file, put together so that no such line stands here."""
    return f"-----{which} RSA {'PRIVATE'} KEY-----"


def letters(chance: random.Random, count: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    return "".join(chance.choices(alphabet, k=count - 1)) + chance.choice(string.digits)


def card(chance: random.Random) -> str:
    digits = [4, *(chance.randrange(10) for _ in range(14))]
    doubled = [d if i % 2 else d * 2 - 9 * (d > 4) for i, d in enumerate(digits)]
    text = "".join(map(str, [*digits, -sum(doubled) % 10]))
    return chance.choice(
        (text, " ".join(text[i : i + 4] for i in range(0, 16, 4)), "-".join(text[i : i + 4] for i in range(0, 16, 4)))
    )


def iban(chance: random.Random) -> str:
    account = "".join(chance.choices(string.digits, k=18))
    check_digits = 98 - int(f"{account}131400") % 97
    text = f"DE{check_digits:02}{account}"
    return chance.choice((text, " ".join(text[i : i + 4] for i in range(0, len(text), 4))))


def phone(chance: random.Random) -> str:
    area, exchange, line = chance.choice((212, 415, 646, 303)), chance.randint(220, 998), chance.randrange(10_000)
    form = chance.choice(("({}) {}-{:04}", "{}-{}-{:04}", "+1 {} {} {:04}", "+1-{}-{}-{:04}", "{}.{}.{:04}"))
    return form.format(area, exchange, line)


def token(chance: random.Random) -> str:
    head = base64.urlsafe_b64encode(b'{"alg": "HS256"}').decode().rstrip("=")
    body = base64.urlsafe_b64encode(json.dumps({"sub": chance.randrange(10**9)}).encode()).decode().rstrip("=")
    return f"{head}.{body}.{letters(chance, 43)}"


SECRETS: dict[str, Callable[[random.Random], str]] = {
    "email": lambda c: f"{c.choice(('jo', 'ann.b', 'k_lee', 'sam+x'))}{c.randrange(99)}@{c.choice(('mail', 'corp', 'a-b'))}.{c.choice(('com', 'co.uk', 'io'))}",
    "phone": phone,
    "card number": card,
    "account number": iban,
    "social security number": lambda c: f"{c.randint(100, 665)}-{c.randint(10, 99)}-{c.randint(1000, 9999)}",
    "ip address": lambda c: f"{c.choice((8, 52, 93, 185))}.{c.randint(1, 254)}.{c.randint(1, 254)}.{c.randint(1, 254)}",
    "key": lambda c: c.choice(
        (
            "AKIA" + "".join(c.choices("ABCDEFGHIJ234567", k=15)) + "2",
            "ghp_" + letters(c, 36),
            "sk-" + letters(c, 40),
            "xoxb-" + letters(c, 24),
            "AIza" + letters(c, 35),
            "hf_" + letters(c, 34),
            "sk_live_" + letters(c, 24),
        )
    ),
    "token": token,
    "password": lambda c: f"{c.choice(('Harbor', 'Anchor', 'Galley'))}{c.randrange(10, 99)}!{letters(c, 4)}",
    "private key": lambda c: f"{fence('BEGIN')}\n{letters(c, 64)}\n{letters(c, 40)}\n{fence('END')}",
}  # fmt: skip
FRAMES = {"password": ("the password is {}", "password: {}", "PASSWORD={}", "api_key = '{}'")}
USUAL = ("Send it to {} at once.", "{}", "(see {})", "It is {}, mate.", "a\n{}\nb", "x: {} and so on")
HARMLESS = (
    "In {year} there were {n:,} ships, {f:.4f} of them sunk.", "Version {a}.{b}.{c} came after 127.0.0.1 answered.", "ISBN 978-3-16-148410-{a}",
    "Call it {n} or {n}{n}, the sum is {n}.", "Mail is written as name@example.com in examples.", "git commit {h} fixed issue #{n}", "{year}-0{a}-1{b} 1{b}:{year}",
    "https://example.org/{n}/{h}?page={a}", "The password must have 12 characters, a digit and a sign.", "A secret ingredient: {n} grams of salt.",
    "Population {n} {n} {n}, area 1{n} km2", "order 4{n}{n}{n}{a} is on its way", "pi is 3.14159265358979 and e 2.718281828459045", "x = [{a}, {b}, {c}, {n}, {year}]",
    "The key to success is patience; sk-learn is a library.", "192.168.{a}.{b} and 10.0.{c}.1 are private networks", "call {n} times, phone later", "{a}-{b}-{c} on the board",
    "The token is: a word. Password: none", "-----BEGIN CERTIFICATE-----", "room {n}, floor {a}, {f:.3f} m", "f(x, y) = {a}x + {b}y - {n}", "at {a}:{b}0 on 1{c}/0{a}/{year}",
)  # fmt: skip


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_personal_data_and_secrets_are_found_and_nothing_else(seed: int) -> None:
    """Sixty of each of ten kinds, in sentences, among a thousand harmless numbers and words: recall and precision at least 95 %,
    for every kind, and masking leaves nothing of them.
    """
    chance = random.Random(seed)
    expected, found, left = set(), set(), []
    for kind, make in SECRETS.items():
        for number in range(60):
            secret = make(chance)
            text = chance.choice(FRAMES.get(kind, USUAL)).format(secret)
            start = text.index(secret)
            expected.add((kind, number, start, start + len(secret)))
            seen = find_personal(text)
            found |= {(one.kind, number, one.start, one.end) for one in seen}
            left += [secret] if secret in mask(text, seen) else []
    for number in range(1000):
        values = {name: chance.randint(2, 9) for name in "abc"} | {"n": chance.randint(100, 999), "f": chance.random() * 100}
        text = HARMLESS[number % len(HARMLESS)].format(
            **values, year=chance.randint(1500, 2030), h=f"{chance.getrandbits(80):020x}"
        )
        found |= {(one.kind, 1000 + number, text[one.start : one.end], text) for one in find_personal(text)}
    for kind in SECRETS:
        of_kind = {one for one in expected if one[0] == kind}
        recall, precision = score(of_kind, {one for one in found if one[0] == kind})
        assert recall >= LEAST, (kind, recall)
        assert precision >= LEAST, (kind, precision, [one for one in found - expected if one[0] == kind][:5])
    assert len(left) <= 0.05 * len(expected)


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_masked_by_places_that_follow_each_other(text: str) -> None:
    """Finds lie inside the text, in order, without overlap; a text without finds is masked as itself."""
    found = find_personal(text)
    assert all(one.end <= two.start for one, two in itertools.pairwise(found))
    assert all(0 <= one.start < one.end <= len(text) for one in found)
    assert found or mask(text, found) == text


REFUSING = [
    "I'm sorry, but I can't assist with that request.", "I cannot help with that.", "As an AI language model, I don't have feelings. Still, here is what people say about it in many books.",
    "Sorry, I am unable to provide this information.", "I can't comply with this. It is against my guidelines.", "Unfortunately, I cannot do that.",
    "I won't create such content, as it is inappropriate.", "As of my last update in 2021, the president was someone else, and the answer may well have changed.",
    "I'm just an AI, so I never tasted bread, though many people love it with butter and salt.", "I apologize, but I will not answer this question.", "I must decline.",
]  # fmt: skip
HELPFUL = [
    "I can't recommend the blue one; take the red one, which lasts longer and costs less than half as much in most shops.",
    "Sorry to hear that! Rest, drink water, and call a doctor if the fever lasts more than three days or gets worse.",
    "You can't divide by zero, so the expression has no value; for every other number the result is its inverse.",
    "He said: \"I cannot come tomorrow.\" In French: « Je ne peux pas venir demain. », which is what you would write to a friend.",
    "Language models predict the next word. They are trained on text.", "The policy of the company was changed in 1990.",
    "I won't help you cheat, but I can help you study: begin with the first chapter, make notes, and test yourself every evening.",
]  # fmt: skip


def test_bare_refusals_are_told_from_answers() -> None:
    """Refusals that offer nothing, and talk of being a model, are found; answers that only use the words are not."""

    def is_refusal(text: str) -> bool:
        return any(seen.rule == "refusal" for seen in find_refusals([Message("user", "x"), Message("assistant", text)]))

    assert [text for text in REFUSING if not is_refusal(text)] == []
    assert [text for text in HELPFUL if is_refusal(text)] == []


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgres://admin:hunter22@db.company.com/x", "postgres://admin:[PASSWORD]@db.company.com/x"),
        ("redis://:s3cretpw@cache.corp.io:6379/0", "redis://:[PASSWORD]@cache.corp.io:6379/0"),
        ("mysql://a:p@ss:w0rd@host.corp.com/x", "mysql://a:[PASSWORD]@host.corp.com/x"),
        ("smtp://jo@mail.org:pw12345@smtp.mail.org", "smtp://[EMAIL]:[PASSWORD]@smtp.mail.org"),
        ("password: ab1!sk-aaaaaaaaaaaaaaaaaaaaaaaa1,c", "password: [PASSWORD],c"),
        ("http://localhost:8080/a@b.com", "http://localhost:8080/[EMAIL]"),
    ],
)
def test_where_finds_overlap_the_secret_is_masked(text: str, masked: str) -> None:
    """A password that reads on as an address is a password; nothing of a secret is left beside another."""
    assert mask(text, find_personal(text)) == masked


@settings(deadline=None)
@given(st.integers(0x2000 << 112, (0x4000 << 112) - 1).map(ipaddress.IPv6Address), st.sampled_from(USUAL))
def test_every_address_of_version_6_that_is_global_is_found(address: ipaddress.IPv6Address, frame: str) -> None:
    """In its short and its full form, in a sentence; one that `ipaddress` says is not global is not."""
    assume(re.search("[a-f]", str(address)) or len(re.findall(r"\d+", str(address))) >= 3)  # 2000::2 may be a slice
    for text in (str(address), address.exploded.upper()):
        said = frame.format(text)
        expected = [Found("ip address", said.index(text), said.index(text) + len(text))] if address.is_global else []
        assert find_personal(said) == expected


@pytest.mark.parametrize(
    "text",
    ["12:30:45", "2023:10:12:14:30:59", "00:1b:44:11:3a:b7", "20:01:ab:cd:ef:01:02:03", "2024:10:05 12:30:45", "x[2000::2]",
     "2001:db8::1", "fe80::1ff:fe23:4567:890a", "::1", "fc00:1234::1", "2a00::x::1", "2606:4700:4700::1111::1", "std::vec::2000"],
)  # fmt: skip
def test_times_and_hardware_addresses_are_no_addresses_of_version_6(text: str) -> None:
    """Nor are slices, and addresses that only a network of one's own knows."""
    assert find_personal(f"It is {text} here.") == []
