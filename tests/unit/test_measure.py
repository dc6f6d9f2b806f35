"""What N machines would bring: costs fitted, links extrapolated, schedules played, verdicts, baselines kept and compared."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from baseline_figures import FAST, SLOW, make_baseline, make_host, make_sweep

from trainer.cluster.inventory import Cluster, Host
from trainer.config import RunConfig, TrainConfig
from trainer.data.assign import assign_rows
from trainer.data.order import global_batch_at
from trainer.errors import InputError
from trainer.measure.compare import compare
from trainer.measure.cost import fit_cost
from trainer.measure.figures import summarise_values
from trainer.measure.forecast import foretell
from trainer.measure.link import Line, fit_line, list_routes
from trainer.measure.predict import play, predict
from trainer.measure.schedule import list_members, make_job, schedule
from trainer.measure.store import find_matching, load_baseline, read_baseline, save_baseline
from trainer.measure.verdict import duration, judge
from trainer.report.baseline import describe_trunk


def strong(baseline: dict[str, Any], num_hosts: int, network: str | None = FAST) -> dict[str, Any]:
    entries = predict(baseline)
    return next(
        entry for entry in entries if (entry["scaling"], entry["num_hosts"], entry["network"]) == ("strong", num_hosts, network)
    )


def test_the_cost_of_a_host_is_found_again() -> None:
    """Known parts come back from exact times, on sizes that were not measured."""
    cost = fit_cost(make_host(0.01)["training"])
    assert cost.seconds(100, 50) == pytest.approx(1.25)
    assert cost.seconds(1000, 500) == pytest.approx(12.5)
    assert cost.spread == pytest.approx(0, abs=1e-6)


def test_a_hiccup_scales_the_mean_and_does_not_bend_the_line() -> None:
    """One time ten times too long: the sum of all is kept, the proportions of long and short are as without it."""
    training = make_host(0.01)["training"]
    training["micro_batches"][0]["seconds"] *= 10
    batches, cost = training["micro_batches"], fit_cost(training)
    predicted = sum(cost.seconds(batch["padded"], batch["supervised"]) for batch in batches)
    assert predicted == pytest.approx(sum(batch["seconds"] for batch in batches))
    assert cost.seconds(200, 100) / cost.seconds(100, 50) == pytest.approx(2, rel=0.02)


def test_rows_without_supervised_tokens_cost_nothing() -> None:
    """The step leaves such micro-batches out, so the prediction must."""
    assert fit_cost(make_host(0.01)["training"]).seconds(100, 0) == 0


def test_no_part_of_a_cost_is_negative() -> None:
    """Times that fall with the supervised tokens are noise, not a gift."""
    generator = np.random.default_rng(1)
    for _ in range(50):
        training = make_host(0.01)["training"]
        for batch in training["micro_batches"]:
            batch["seconds"] *= generator.uniform(0.5, 1.5)
            batch["supervised"] = int(generator.integers(1, batch["padded"]))
        cost = fit_cost(training)
        assert min(cost.fixed_s, cost.padded_s, cost.supervised_s) >= 0


@pytest.mark.parametrize("backend", ["mpi", "ring"])
def test_a_pair_of_hosts_tells_latency_and_bandwidth(backend: str) -> None:
    """The line behind a sweep is found again, and both algorithms agree on a pair."""
    line = Line(2e-4, 3e-9)
    sweep = make_sweep(["a", "b"], FAST, line, 5_000_000, backend)["sweep"]
    found = fit_line(sweep)
    assert (found.latency_s, found.byte_s) == pytest.approx((2e-4, 3e-9))
    assert line.all_reduce_s(backend, 2, 1000) == pytest.approx(2 * 2e-4 + 1000 * 3e-9)


def test_more_ranks_never_reduce_faster() -> None:
    """From two ranks on, and nothing for one."""
    for backend in ("mpi", "ring"):
        line = Line(1e-4, 1e-9)
        times = [line.all_reduce_s(backend, num_ranks, 10_000_000) for num_ranks in (1, 2, 4, 8)]
        assert times[0] == 0
        assert times == sorted(times)
        assert times[3] < 2 * times[1]  # a ring's and Rabenseifner's bound, but for latency


def test_what_was_measured_wins_over_the_formula() -> None:
    """Three hosts measured together take what they took."""
    baseline = make_baseline({"alpha": 0.01, "beta": 0.01, "gamma": 0.01})
    sweep = make_sweep(["alpha", "beta", "gamma"], FAST, Line(1e-4, 1e-9), 10_000_000)
    for size in sweep["sweep"]:
        size["seconds"] = summarise_values([0.5] * 3)
    baseline["all_reduce"].append(sweep)
    route = list_routes(baseline)[0]
    assert route.all_reduce_s(["alpha", "beta", "gamma"], 3, 10_000_000) == 0.5
    assert route.all_reduce_s(["alpha", "beta"], 2, 10_000_000) == pytest.approx(0.0102)


def test_the_slowest_pair_decides() -> None:
    """One bad cable among three holds all up."""
    baseline = make_baseline({"alpha": 0.01, "beta": 0.01, "gamma": 0.01})
    bad = make_sweep(["beta", "gamma"], FAST, Line(1e-4, 1e-7), 10_000_000)
    baseline["all_reduce"] = [
        bad if each["hosts"] == bad["hosts"] and each["network"] == FAST else each for each in baseline["all_reduce"]
    ]
    route = list_routes(baseline)[0]
    three = route.all_reduce_s(["alpha", "beta", "gamma"], 3, 10_000_000)
    assert three == pytest.approx(Line(1e-4, 1e-7).all_reduce_s("mpi", 3, 10_000_000))
    assert route.all_reduce_s(["alpha", "beta"], 2, 10_000_000) == pytest.approx(0.0102)


def test_the_schedule_is_that_of_the_run() -> None:
    """Rank by rank, the seconds are those of the rows that the run's own functions deal out."""
    baseline = make_baseline()
    job, members = make_job(baseline), list_members(baseline)
    seconds = schedule(job, members, 3)
    for step in range(3):
        rows = [job.rows[int(row)] for row in global_batch_at(step, len(job.rows), 8, 0)]
        for rank, own in enumerate(assign_rows([tokens for tokens, _ in rows], 2)):
            ordered = sorted((rows[position] for position in own), reverse=True)
            groups = [ordered[start : start + 2] for start in range(0, len(ordered), 2)]
            expected = sum(
                0.01 * len(group) * (group[0][0] - 1) + 0.005 * sum(supervised for _, supervised in group) for group in groups
            )
            assert seconds[step, rank] == pytest.approx(expected)


def test_the_frozen_layers_are_told_in_a_sentence() -> None:
    """Where their output is kept: how long they take, and that the first epoch is slower."""
    training = make_host()["training"]
    assert describe_trunk(training) == ""
    training |= {"trunk": {"layers": 22, "tokens": 900, "token_s": 0.0031}, "first_epoch_samples_per_s": 1.234}
    assert describe_trunk(training) == (
        "22 frozen layers take 3.1 ms a token, once for each sample; "
        "the first epoch runs at 1.23 samples/s, the others as above"
    )


def keep_trunk(baseline: dict[str, Any], ratio: float = 0.7) -> dict[str, Any]:
    """Let the hosts keep what frozen layers put out, 10 ms a token, a line of 20 ms a token for the rest."""
    baseline["job"] |= {"trunk_ratio": ratio, "is_packed": True}
    for host in baseline["hosts"].values():
        host["training"]["trunk"] = {"layers": 2, "tokens": 1000, "token_s": 0.01}
    return baseline


def test_a_row_goes_through_the_frozen_layers_once_on_a_host() -> None:
    """In the first epoch every row costs the trunk's seconds, on one host or the other; in the second, only where it is new."""
    baseline = keep_trunk(make_baseline({"alpha": 0.01}))
    job, members = make_job(baseline), list_members(baseline)
    plain = dataclasses.replace(job, trunk_ratio=0.0)
    members_plain = [dataclasses.replace(m, cost=dataclasses.replace(m.cost, trunk_s=0.0)) for m in members]
    once = 0.01 * sum(tokens - 1 for tokens, _ in job.rows)
    epoch = job.epoch_steps
    first, both = (float(schedule(job, members, n * epoch).sum()) for n in (1, 2))
    bare_first, bare_both = (float(schedule(plain, members_plain, n * epoch).sum()) for n in (1, 2))
    assert first - bare_first == pytest.approx(once)
    assert both - bare_both == pytest.approx(once)
    two = [m for name in ("a", "b") for m in [dataclasses.replace(members[0], name=name)]]
    shared = float(schedule(job, two, 2 * epoch).sum()) - float(schedule(plain, [*members_plain] * 2, 2 * epoch).sum())
    assert once <= shared + 1e-6 <= 2 * once
    kept = dataclasses.replace(job, is_kept=True)
    assert float(schedule(kept, members, epoch).sum()) == pytest.approx(bare_first)


def test_a_long_run_pays_for_its_first_epoch_once() -> None:
    """However long the run: its seconds are those of the first epoch's frozen layers, and of the rest for every step."""
    baseline = keep_trunk(make_baseline({"alpha": 0.01}, steps=1000))
    job, members = make_job(baseline), list_members(baseline)
    once = 0.01 * sum(tokens - 1 for tokens, _ in job.rows)
    kept = play(dataclasses.replace(job, is_kept=True), members)
    assert play(job, members).slowest_s - kept.slowest_s == pytest.approx(once, rel=0.01 * kept.slowest_s / once)


def test_a_slower_host_gets_less_once_speeds_are_known() -> None:
    """After the first steps the shares follow the speeds, as in the run, unless they are told not to."""
    baseline = make_baseline({"alpha": 0.01, "beta": 0.02})
    baseline["job"]["global_batch"] = 32
    job, members = make_job(baseline), list_members(baseline)
    seconds = schedule(job, members, 30)
    even = schedule(dataclasses.replace(job, balance="tokens"), members, 30)
    assert (seconds[:9] == even[:9]).all()
    assert seconds[9:].max(axis=1).sum() < 0.75 * even[9:].max(axis=1).sum()


def test_one_host_is_the_measure() -> None:
    """Its speed-up is 1, it waits for nobody, and it has no network."""
    alone = predict(make_baseline())[0]
    assert (alone["num_hosts"], alone["speedup"], alone["wait_s"], alone["comm_s"], alone["network"]) == (
        1,
        1.0,
        0.0,
        0.0,
        None,
    )


def test_two_equal_hosts_on_a_fast_link_are_nearly_twice_as_fast() -> None:
    """What is missing to 2 is uneven shares, the fixed part of a step and the all-reduce: the parts of a step add up."""
    entry = strong(make_baseline(), 2)
    assert 1.7 < entry["speedup"] < 2
    assert entry["efficiency"] == entry["speedup"] / 2
    assert entry["compute_s"] + entry["wait_s"] + entry["comm_s"] == pytest.approx(entry["step_s"])
    assert entry["run_s"] == pytest.approx(50 * entry["step_s"])


def test_a_slow_link_with_a_large_adapter_is_worse_than_alone() -> None:
    """100 MB a step over 100 Mbit/s: said so, and the verdict is to train alone."""
    baseline = make_baseline(payload_bytes=100_000_000)
    assert strong(baseline, 2, SLOW)["speedup"] < 1 < strong(baseline, 2, FAST)["speedup"]
    baseline["all_reduce"] = [each for each in baseline["all_reduce"] if each["network"] == SLOW]
    baseline["prediction"] = predict(baseline)
    verdict = judge(baseline)
    assert verdict["choice"] == "alone"
    assert "together is slower" in verdict["headline"]


def test_a_tiny_job_is_not_worth_it() -> None:
    """Two hosts would be faster, but the run is over in a minute or so."""
    baseline = make_baseline(steps=5)
    baseline["prediction"] = predict(baseline)
    takes = duration(baseline["prediction"][0]["run_s"])
    told = f"Train on alpha alone: the run takes {takes}, too little to be worth several machines."
    assert judge(baseline) | {"reasons": []} == {"choice": "alone", "headline": told, "reasons": []}


def test_one_host_trains_alone() -> None:
    """There is nobody to train with, whatever others would bring."""
    baseline = make_baseline({"alpha": 0.01}, steps=1000, all_reduce=[])
    baseline["prediction"] = predict(baseline)
    verdict = judge(baseline)
    takes = duration(baseline["prediction"][0]["run_s"])
    assert verdict["choice"] == "alone"
    assert verdict["headline"] == f"Train on alpha: it is the only machine, and the run takes {takes}."


def test_a_long_job_on_a_fast_link_is_worth_it() -> None:
    """The verdict names hosts, link and gain, and answers the questions."""
    baseline = make_baseline(steps=1000)
    baseline["prediction"] = predict(baseline)
    verdict = judge(baseline)
    assert verdict["choice"] == "together"
    assert verdict["headline"].startswith(f"Train together on alpha, beta over {FAST} with mpi: ")
    told = " ".join(verdict["reasons"])
    assert all(question in told for question in ("Does it take hours?", "Do you do it often?", "Do you have the machines?"))


def test_what_does_not_fit_is_refused() -> None:
    """A host whose memory is used up: not at all, with the figures."""
    baseline = make_baseline()
    baseline["hosts"]["beta"]["system"]["memory_mib"] = 1800.0
    baseline["prediction"] = predict(baseline)
    verdict = judge(baseline)
    assert (verdict["choice"], verdict["reasons"][0]) == ("not", "beta: training takes 1500 MiB of 1800 MiB.")


def test_an_unequal_host_waits_or_is_waited_for() -> None:
    """Equal shares on hosts of unequal speed: the fast one waits, and the gain is less than with two fast ones."""
    unequal = strong(make_baseline({"alpha": 0.01, "beta": 0.02}), 2)
    equal = strong(make_baseline(), 2)
    assert unequal["speedup"] < equal["speedup"]
    assert unequal["wait_s"] > equal["wait_s"]
    assert strong(make_baseline({"alpha": 0.02, "beta": 0.01}), 2)["hosts"] == ["beta", "alpha"]


def test_weak_scaling_keeps_every_host_as_busy() -> None:
    """With N times the batch, efficiency does not fall below that of the same batch on N hosts."""
    entries = {(e["scaling"], e["num_hosts"]): e for e in predict(make_baseline()) if e["network"] == FAST}
    for num_hosts in range(2, 9):
        assert entries["weak", num_hosts]["efficiency"] >= entries["strong", num_hosts]["efficiency"] - 1e-9


def test_hosts_that_are_not_there_are_like_those_that_are() -> None:
    """Eight hosts foretold from two, named as what they are."""
    assert strong(make_baseline(), 4)["hosts"] == ["alpha", "beta", "like alpha", "like beta"]


def test_noise_makes_everybody_wait() -> None:
    """The same mean with noise: two hosts gain less, for a step takes its slowest rank."""
    noisy = make_baseline()
    for host in noisy["hosts"].values():
        for number, batch in enumerate(host["training"]["micro_batches"]):
            batch["seconds"] *= 1.4 if number % 2 else 0.6
    assert strong(noisy, 2)["speedup"] < strong(make_baseline(), 2)["speedup"]


def test_the_settings_of_a_run_change_its_prediction() -> None:
    """Steps and batch of another configuration are played with the same measurements."""
    config = RunConfig(train=TrainConfig(steps=7, global_batch=4, micro_batch=4))
    job = make_job(make_baseline(), config)
    assert (job.steps, job.global_batch, job.micro_batch) == (7, 4, 4)
    assert make_job(make_baseline(), RunConfig(train=TrainConfig(epochs=2, global_batch=8))).steps == 50


def test_a_baseline_is_kept_whole(tmp_path: Path) -> None:
    """It comes back as it was, a second one of the same second gets another name, and latest is the newest."""
    baseline = make_baseline()
    first, second = (save_baseline(baseline, tmp_path) for _ in range(2))
    assert first != second
    assert read_baseline(first / "baseline.json") == read_baseline(tmp_path / "latest" / "baseline.json") == baseline
    assert (tmp_path / "latest").resolve() == second
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([first.name, second.name, "latest"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is no baseline"),
        ("[]", "is of version None, this Flotilla reads 1; measure again with ./inv baseline"),
        ('{"version": 0}', "is of version 0, this Flotilla reads 1; measure again with ./inv baseline"),
        ('{"version": 2, "hosts": {}}', "is of version 2, this Flotilla reads 1; measure again with ./inv baseline"),
        ('{"version": 1, "hosts": {}}', "lacks time, name, config"),
        (
            json.dumps({**make_baseline(), "hosts": [], "links": None}),
            "hosts, links is not what Flotilla writes there; measure",
        ),
    ],
)
def test_other_files_are_refused_in_a_sentence(tmp_path: Path, text: str, told: str) -> None:
    """Half a file, another version, another thing."""
    path = tmp_path / "baseline.json"
    path.write_text(text, "utf-8")
    with pytest.raises(InputError, match=r"baseline\.json") as raised:
        read_baseline(path)
    assert str(raised.value).startswith(f"{path}: {told}")


def test_no_baseline_is_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what makes one."""
    monkeypatch.setenv("FLOTILLA_BASELINES", str(tmp_path))
    with pytest.raises(InputError, match=r"there is no baseline here; \./inv baseline makes one"):
        load_baseline()


def test_only_a_baseline_of_the_same_run_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another model, data, adapter or host: none; an unreadable file beside it does not matter."""
    monkeypatch.setenv("FLOTILLA_BASELINES", str(tmp_path))
    baseline = make_baseline()
    save_baseline(baseline)
    (tmp_path / "20990101-000000-broken").mkdir()
    (tmp_path / "20990101-000000-broken" / "baseline.json").write_text("{", "utf-8")
    prints, config = baseline["fingerprints"], baseline["config"]
    assert find_matching(prints, config, {"alpha"}) == baseline
    assert find_matching({**prints, "model": "other"}, config, {"alpha"}) is None
    assert find_matching(prints, {**config, "adapter": {**config["adapter"], "rank": 64}}, {"alpha"}) is None
    assert find_matching(prints, config, {"alpha", "gamma"}) is None


def cluster(network: str) -> Cluster:
    import ipaddress

    hosts = tuple(Host(name=name, slots=1, management=name, is_local=False, fast=None) for name in ("alpha", "beta"))
    return Cluster(hosts=hosts, network=ipaddress.ip_network(network))


def test_a_run_is_foretold_and_measured_against_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before: the gain, or that alone would be faster. After: both speed-ups against the same host."""
    monkeypatch.setenv("FLOTILLA_BASELINES", str(tmp_path))
    config = RunConfig(train=TrainConfig(steps=100, global_batch=8, micro_batch=2))
    baseline = make_baseline(payload_bytes=100_000_000)
    baseline["config"] = config.as_dict()
    assert foretell(cluster(FAST), config, baseline["fingerprints"]) is None
    save_baseline(baseline)
    fast, slow = (foretell(cluster(network), config, baseline["fingerprints"]) for network in (FAST, SLOW))
    assert fast is not None
    assert slow is not None
    assert "times alpha's speed alone" in fast.describe()
    assert "slower than alpha by itself" not in fast.describe()
    assert "slower than alpha by itself" in slow.describe()
    compared = fast.compare({"tokens_per_s": 2 * fast.alone["tokens_per_s"]})
    assert compared is not None
    assert compared["measured_speedup"] == pytest.approx(2)
    assert compared["predicted_speedup"] == fast.own["speedup"]
    assert fast.compare({"tokens_per_s": 0.0}) is None


def test_what_an_earlier_run_has_kept_is_reckoned_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that finds the frozen layers' output is compared with what was foretold for that."""
    monkeypatch.setenv("FLOTILLA_BASELINES", str(tmp_path))
    config = RunConfig(train=TrainConfig(steps=20, global_batch=8, micro_batch=2))
    baseline = keep_trunk(make_baseline())
    baseline["config"] = config.as_dict()
    save_baseline(baseline)
    forecast = foretell(cluster(FAST), config, baseline["fingerprints"])
    assert forecast is not None
    found = [forecast.compare({"tokens_per_s": 9.0, "trunk": {"needed": 160, "present": n}}) for n in (0, 200)]
    rates = [each["predicted_tokens_per_s"] for each in found if each]
    assert rates[1] > 1.3 * rates[0] == pytest.approx(1.3 * forecast.own["tokens_per_s"])


def test_two_baselines_differ_beyond_the_noise_or_not() -> None:
    """A generation a fifth slower with narrow quartiles is certain, the same with wide ones is noise."""
    before, after = make_baseline(), make_baseline()
    after["hosts"]["alpha"]["inference"]["generation_tokens_per_s"] = summarise_values([8.0, 8.1, 8.2])
    after["hosts"]["beta"]["inference"]["generation_tokens_per_s"] = summarise_values([4.0, 8.1, 12.2])
    changes = {change.what: change for change in compare(before, after)}
    assert changes["alpha: generation tokens/s"].is_certain
    assert changes["alpha: generation tokens/s"].ratio == pytest.approx(0.8, abs=0.01)
    assert not changes["beta: generation tokens/s"].is_certain
    assert not any(change.is_certain for change in compare(before, copy.deepcopy(before)))


def test_times_and_rates_point_the_same_way() -> None:
    """Training twice as slow is a speed of one half, though its figure is a time."""
    changes = {change.what: change for change in compare(make_baseline(), make_baseline({"alpha": 0.02, "beta": 0.01}))}
    assert changes["alpha: training, seconds for 100 tokens"].ratio == pytest.approx(0.5)
    assert changes["alpha: training, seconds for 100 tokens"].is_certain


def test_predictions_are_json(tmp_path: Path) -> None:
    """Whatever is stored survives the file."""
    entries = predict(make_baseline())
    assert json.loads(json.dumps(entries)) == entries


@pytest.mark.parametrize(("seconds", "told"), [(42.4, "42 s"), (89.6, "90 s"), (600, "10 min"), (7500, "2 h 05 min")])
def test_spans_of_time_are_said_as_people_do(seconds: float, told: str) -> None:
    """Seconds, minutes, hours."""
    assert duration(seconds) == told


def test_playing_counts_every_sample() -> None:
    """Samples per second times time are the samples of the steps."""
    baseline = make_baseline()
    job = make_job(baseline)
    timing = play(job, list_members(baseline)[:1]).timing(0.0)
    assert timing.samples_per_s * timing.step_s == pytest.approx(8)
