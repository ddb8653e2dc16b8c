"""The gate of simulated judges: a good one is let in and stays in, a coin and a length lover are not; the guard."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from k2rl.critic.bounds import student
from k2rl.critic.records import JudgedPair, Judgement, Pair
from k2rl.critic.trust import RULES, Config, Gate, Trust

Chance = Callable[[int], float]


def judged(
    p: float, task: str = "t", kind: str = "drop", env: str = "writing", better: int = 10, worse: int = 10
) -> JudgedPair:
    return JudgedPair(Pair(env, task, kind, (), (), "b" * better, "w" * worse), Judgement(p, p))


def batch(
    draws: np.random.Generator, right: float, env: str, kind: str, tasks: int = 12, each: int = 3, spread: float = 6.0
) -> list[JudgedPair]:
    """One iteration's pairs of a judge that is right so often; tasks differ in how hard they are."""
    found = []
    for _ in range(tasks):
        task, q = str(draws.integers(1 << 40)), draws.beta(right * spread, (1 - right) * spread)
        found += [
            judged(float(np.where(draws.random() < q, 1, -1) * draws.uniform(0.05, 0.45) + 0.5), task, kind, env)
            for _ in range(each)
        ]
    return found


def run(seed: int, writing: Chance, verified: Chance, iterations: int, config: Config = Config()) -> list[Gate]:  # noqa: B008
    draws, trust = np.random.default_rng(seed), Trust(config)
    gates = []
    for i in range(1, iterations + 1):
        trust.add(i, batch(draws, writing(i), "writing", "drop"))
        trust.add(i, batch(draws, verified(i), "math", "verified"))
        gates.append(trust.gates(i, ["writing"])["writing"])
    return gates


def test_a_good_judge_is_let_in_soon_and_stays() -> None:
    for seed in range(25):
        gates = run(seed, lambda i: 0.75, lambda i: 0.65, 25)
        opened = next(i for i, gate in enumerate(gates, 1) if gate.weight)
        assert opened <= 5
        assert all(gate.reason == "open" for gate in gates[opened + 1 :]), seed
        assert all(gate.weight > 0.5 for gate in gates[8:])
        assert gates[-1].alarm is None


@pytest.mark.parametrize(("pairs", "tasks"), [(30, 5), (60, 12), (300, 40)])
@pytest.mark.parametrize("spread", [3.0, 1e6])
def test_a_coin_opens_less_than_one_window_in_a_hundred(pairs: int, tasks: int, spread: float) -> None:
    """Also one that is of one mind on each task."""
    draws, opened, windows = np.random.default_rng(1), 0, 250
    for _ in range(windows):
        trust = Trust(Config())
        trust.add(1, batch(draws, 0.5, "writing", "drop", tasks, pairs // tasks, spread))
        opened += trust.gates(1, ["writing"])["writing"].weight > 0
    assert opened <= 0.01 * windows


def test_a_judge_that_turns_into_a_coin_is_shut_out_within_ten_iterations() -> None:
    after = []
    for seed in range(20):
        gates = run(seed, lambda i: 0.8 if i <= 10 else 0.5, lambda i: 0.65, 24)
        assert gates[9].weight > 0
        closed = next(i for i, gate in enumerate(gates[10:], 11) if not gate.weight)
        assert closed <= 20
        alarm = gates[closed - 1].alarm
        assert alarm is not None
        assert "the gate of writing has closed: no_better_than_chance" in alarm
        assert "\n" not in alarm
        after += gates[closed:]
    assert sum(gate.weight for gate in after) / len(after) < 0.01, "and as good as stays out"
    assert sum(gate.alarm is not None for gate in after) < 3, "an alarm is a transition"


@pytest.mark.parametrize("rule", RULES)
def test_a_judge_that_only_knows_a_trivial_rule_stays_out(rule: str) -> None:
    """The corruption gives itself away in nine of ten pairs; the judge looks at nothing else."""
    draws, trust = np.random.default_rng(0), Trust(Config())
    tells = draws.random(200) < 0.9
    sizes = {"longer": (30, 10), "shorter": (10, 30), "format": (10, 10)}[rule]
    pairs = [
        judged(0.9 if tell else 0.1, str(n % 40), better=sizes[not tell], worse=sizes[bool(tell)])
        for n, tell in enumerate(tells)
    ]
    trust.add(1, pairs, [(bool(tell), not tell) if rule == "format" else None for tell in tells])
    gate = trust.gates(1, ["writing"])["writing"]
    assert (gate.weight, gate.reason) == (0.0, f"no_better_than_{rule}")
    assert gate.baseline == pytest.approx(tells.mean())
    assert trust.report()["writing/degradation"][rule] == pytest.approx(tells.mean())


def test_the_guard_closes_when_verified_accuracy_falls_to_chance() -> None:
    for seed in range(15):
        gates = run(seed, lambda i: 0.8, lambda i: 0.65 if i <= 12 else 0.5, 40)
        assert gates[11].weight > 0
        closed = [gate for gate in gates[12:] if not gate.weight]
        assert closed, seed
        assert closed[0].reason in ("guard_below_start", "guard_below_chance")
        assert closed[0].alarm is not None


def test_a_guard_that_has_closed_stays_closed_until_the_judge_is_back() -> None:
    """A little below the start closes nothing by itself, and opens nothing."""
    trust, reasons = Trust(Config(window=2)), []
    for i in range(1, 41):
        share = 0.8 if i <= 5 or i > 30 else 0.5 if i <= 15 else 0.76
        trust.add(i, [judged(0.9, f"{i} {n}") for n in range(40)])
        for n in range(50):
            pair = judged(0.9 if n < 50 * share else 0.1, f"{i} {n}", "verified", "math")
            trust.add(i, [JudgedPair(pair.pair, pair.judgement, Judgement(*[0.9 if n < 40 else 0.1] * 2))])
        again = Trust(Config(window=2))
        again.restore(json.loads(json.dumps(trust.state())))
        trust = again
        reasons.append(trust.gates(i, ["writing"])["writing"].reason)
    assert reasons[4] == "open"
    assert set(reasons[9:30]) == {"guard_below_start"}
    assert reasons[31:] == ["open"] * 9
    trust = Trust(Config(window=2))
    for n in range(50):
        pair = judged(0.9 if n < 38 else 0.1, str(n), "verified", "math")
        trust.add(1, [JudgedPair(pair.pair, pair.judgement, Judgement(*[0.9 if n < 40 else 0.1] * 2))])
    trust.add(1, [judged(0.9, str(n)) for n in range(40)])
    assert trust.gates(1, ["writing"])["writing"].reason == "open"


def test_the_guard_knows_below_chance_without_a_start() -> None:
    gates = run(0, lambda i: 0.9, lambda i: 0.2, 4)
    assert gates[-1].reason == "guard_below_chance"


def test_another_mixture_of_verified_envs_is_no_fall() -> None:
    """Easy pairs vanish as the policy learns: the judge is what it was on either kind."""
    draws, trust = np.random.default_rng(0), Trust(Config())
    for i in range(1, 31):
        trust.add(i, batch(draws, 0.8, "writing", "drop"))
        trust.add(i, batch(draws, 0.9, "easy", "verified", tasks=12 if i < 12 else 1))
        trust.add(i, batch(draws, 0.55, "hard", "verified"))
        gate = trust.gates(i, ["writing"])["writing"]
    assert gate.reason == "open"


def test_few_pairs_or_tasks_keep_it_closed_and_close_it() -> None:
    trust = Trust(Config(window=2))
    assert trust.gates(1, ["writing"])["writing"] == Gate(0.0, "too_few_pairs", None, None)
    trust.add(1, [judged(0.9, str(n)) for n in range(29)])
    assert trust.gates(1, ["writing"])["writing"].reason == "too_few_pairs"
    trust.add(1, [judged(0.9)])
    assert trust.gates(1, ["writing"])["writing"].reason == "open"
    later = trust.gates(3, ["writing"])["writing"]
    assert later.reason == "too_few_pairs"
    assert later.alarm is not None
    trust.add(4, [judged(0.9, str(n % 4)) for n in range(40)])
    assert trust.gates(4, ["writing"])["writing"].reason == "too_few_tasks"


def test_perfect_accuracy_has_a_width_and_tasks_count_more_than_pairs() -> None:
    def bound(pairs: int, tasks: int) -> float:
        trust = Trust(Config())
        trust.add(1, [judged(0.9, str(n % tasks)) for n in range(pairs)])
        found = trust.gates(1, ["writing"])["writing"].bound
        assert found is not None
        return found

    assert 0.4 < bound(30, 5) < 0.5, "thirty pairs of five tasks are not enough"
    assert bound(30, 8) > 0.5
    assert 0.5 < bound(300, 5) < 0.7
    assert bound(30, 5) < bound(30, 30) < bound(300, 30) < 0.97


def test_the_bound_by_hand() -> None:
    """36 of 60 tasks with one pair each: n is 60, Student's quantile at 59 degrees 2.662, Wilson's formula 0.4299."""
    trust = Trust(Config())
    trust.add(1, [judged(0.9 if n < 36 else 0.1, str(n)) for n in range(60)])
    gate = trust.gates(1, ["writing"])["writing"]
    assert gate.bound == pytest.approx(0.4299, abs=2e-4)


@pytest.mark.parametrize(("freedom", "value"), [(4, 4.604), (9, 3.250), (30, 2.750), (1000, 2.581)])
def test_students_quantile(freedom: int, value: float) -> None:
    assert student(0.995, freedom) == pytest.approx(value, rel=0.02)


def test_the_weight_is_a_ramp() -> None:
    def weight(ramp: float) -> tuple[float, Gate]:
        trust = Trust(Config(ramp=ramp))
        trust.add(1, [judged(0.9 if n % 4 else 0.1, str(n)) for n in range(200)])
        gate = trust.gates(1, ["writing"])["writing"]
        return gate.weight, gate

    assert weight(0.1)[0] == 1.0
    value, gate = weight(0.5)
    assert gate.bound is not None
    assert value == pytest.approx((gate.bound - 0.5) / 0.5)


def test_the_report_of_a_judge_that_pays_by_length() -> None:
    """Log-odds 2 x the log of the lengths' ratio (one added to each), plus 1 for being right."""
    draws, pairs = np.random.default_rng(0), []
    for n in range(300):
        better, worse = draws.integers(50, 150, 2).tolist()
        odds = 1 + 2 * np.log((better + 1) / (worse + 1))
        kind = "drop" if n % 2 else "verified"
        pairs.append(judged(float(1 / (1 + np.exp(-odds))), str(n % 30), kind, better=better, worse=worse))
    trust = Trust(Config())
    trust.add(1, pairs)
    report = trust.report()
    assert set(report) == {"writing/verified", "writing/degradation"}
    figures: dict[str, Any] = report["writing/degradation"]
    assert figures["length_slope"] == pytest.approx(2.0)
    assert (figures["pairs"], figures["tasks"]) == (150, 15)
    assert figures["order_agreement"] == 1.0
    assert figures["longer"] + figures["shorter"] == pytest.approx(1.0)
    low, high = figures["ci95"]
    assert low <= figures["accuracy"] <= high
    assert figures["by_kind"] == {"drop": pytest.approx(figures["accuracy"])}
    json.dumps(report)


def test_no_slope_where_lengths_do_not_vary() -> None:
    trust = Trust(Config())
    trust.add(1, [judged(0.7, str(n), better=20, worse=10) for n in range(20)])
    assert trust.report()["writing/degradation"]["length_slope"] is None


def test_the_temperature_of_one_who_is_too_sure() -> None:
    """Says 0.99, is right three times in four: log-odds of 0.75 take a temperature of ln 99 / ln 3."""
    trust = Trust(Config())
    assert trust.temperature("writing") == 1.0
    trust.add(1, [judged(0.99 if n % 4 else 0.01, str(n)) for n in range(200)])
    assert trust.temperature("writing") == pytest.approx(np.log(99) / np.log(3), rel=1e-3)
    assert trust.temperature("other") == 1.0


def test_state_goes_through_json_and_goes_on_identically() -> None:
    draws = np.random.default_rng(5)
    days = [
        batch(draws, 0.8 if i < 12 else 0.5, "writing", "drop") + batch(draws, 0.65, "math", "verified")
        for i in range(20)
    ]
    whole, half = Trust(Config()), Trust(Config())
    gates = []
    for i, pairs in enumerate(days):
        whole.add(i, pairs)
        gates.append(whole.gates(i, ["writing"]))
    for i in range(11):
        half.add(i, days[i])
        half.gates(i, ["writing"])
    again = Trust(Config())
    again.restore(json.loads(json.dumps(half.state())))
    for i in range(11, 20):
        again.add(i, days[i])
        assert again.gates(i, ["writing"]) == gates[i]
    assert again.state() == whole.state()
    assert any(gate["writing"].alarm for gate in gates)
    assert again.report() == whole.report()


def test_as_many_flags_as_pairs() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Trust(Config()).add(1, [judged(0.5), judged(0.5)], [None])


@pytest.mark.parametrize(
    "wrong", [{"window": 0}, {"min_pairs": 1}, {"min_tasks": 1}, {"ramp": 0.0}, {"confidence": 0.5}, {"guard_drop": -1}]
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Trust(Config(**wrong))


def apart(p: float, task: str) -> JudgedPair:
    return JudgedPair(Pair("writing", task, "drop", (), (), "b", "w", True), Judgement(p, p))


def test_who_sees_only_where_near_copies_differ_is_kept_out() -> None:
    for right, weight in ((0.9, 1.0), (0.5, 0.0)):
        draws, trust = np.random.default_rng(1), Trust(Config())
        for i in range(1, 9):
            trust.add(i, batch(draws, 0.95, "writing", "drop"))
            trust.add(i, [apart(float(draws.random() < right), f"{i} {n}") for n in range(36)])
            gate = trust.gates(i, ["writing"])["writing"]
        assert gate.weight == weight
        assert trust.report()["writing/apart"]["accuracy"] == pytest.approx(right, abs=0.1)


def test_with_the_start_on_the_same_pairs_harder_pairs_close_nothing() -> None:
    """Accuracy falls from 0.9 to 0.55, as that of the start does; then the judge alone falls to a coin."""
    draws, trust, reasons = np.random.default_rng(1), Trust(Config()), []
    for i in range(1, 41):
        trust.add(i, batch(draws, 0.9, "writing", "drop"))
        ability = max(0.9 - 0.05 * i, 0.55)
        for n in range(36):
            start = float(draws.random() < (ability if i <= 20 else 0.8))
            now = start if i <= 20 and draws.random() < 0.8 else float(draws.random() < (ability if i <= 20 else 0.5))
            pair = judged(now, f"{i} {n // 3}", "verified", "math")
            trust.add(i, [JudgedPair(pair.pair, pair.judgement, Judgement(start, start))])
        reasons.append(trust.gates(i, ["writing"])["writing"].reason)
    assert set(reasons[3:20]) == {"open"}
    assert reasons[30:] == ["guard_below_start"] * 10
    gain = trust.report()["math/verified"]["gain"]
    assert gain == pytest.approx(-0.3, abs=0.1)
    assert trust.report()["writing/degradation"]["gain"] is None


def test_a_judge_that_forgets_its_environment_is_shut_out_of_that_one() -> None:
    """Right in 0.9 of one environment's pairs as its start is, then in 0.75, then in 0.9 again: still far above a coin,
    and worse than it was."""
    draws, trust, gates = np.random.default_rng(2), Trust(Config(window=4)), []
    for i in range(1, 41):
        for env in ("writing", "open"):
            for n in range(36):
                start = float(draws.random() < 0.9)
                lost = env == "writing" and 12 < i <= 24 and draws.random() < 0.2
                pair = judged(0.0 if lost else start, f"{i} {n // 3}", "drop", env)
                trust.add(i, [JudgedPair(pair.pair, pair.judgement, Judgement(start, start))])
        gates.append(trust.gates(i, ["writing", "open"]))
    reasons = [gate["writing"].reason for gate in gates]
    assert set(reasons[3:12]) == {"open"}
    assert set(reasons[15:24]) == {"guard_forgetting"}
    assert set(reasons[28:]) == {"open"}
    assert {gate["open"].reason for gate in gates[3:]} == {"open"}
    assert sum(gate["writing"].alarm is not None for gate in gates) == 1
    assert "guard_forgetting (accuracy surely above 0." in next(
        str(g["writing"].alarm) for g in gates[3:] if g["writing"].alarm
    )


def test_what_has_closed_a_gate_goes_through_a_checkpoint() -> None:
    """Worse by so little that it would not have closed an open gate: the one that goes on keeps it shut."""
    trust = Trust(Config(window=1))

    def day(i: int, lost: int, trusts: list[Trust]) -> list[str]:
        pairs = [judged(0.1 if n < lost else 0.9, f"{i} {n}", "drop") for n in range(60)]
        for one in trusts:
            one.add(i, [JudgedPair(p.pair, p.judgement, Judgement(0.9, 0.9)) for p in pairs])
        return [one.gates(i, ["writing"])["writing"].reason for one in trusts]

    assert day(1, 20, [trust]) == ["guard_forgetting"]
    again = Trust(Config(window=1))
    again.restore(json.loads(json.dumps(trust.state())))
    assert day(2, 1, [trust, again, Trust(Config(window=1))]) == ["guard_forgetting", "guard_forgetting", "open"]
