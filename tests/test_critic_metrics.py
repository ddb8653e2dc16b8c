"""The judge's metrics: eight pairs worked out by hand, what is undefined, intervals, the fitted temperature."""

from __future__ import annotations

import math

import numpy as np
import pytest

from k2rl import rng
from k2rl.critic.metrics import (
    COLDEST,
    HOTTEST,
    METRICS,
    Labelled,
    bootstrap,
    fitted_temperature,
    intervals,
    measure,
    reliability,
    tempered,
)
from k2rl.critic.records import Judgement
from k2rl.intervals import wilson

#            a_first b_first label  lengths      P(A)   chosen  orders pick  first shown wins (of 2)
HAND = (
    (0.9, 0.7, True, (10, 5)),  #   0.8    A right   A A          1 (A first), 0
    (0.4, 0.2, True, (5, 10)),  #   0.3    B wrong   B B          0, 1
    (0.9, 0.1, True, (10, 10)),  #  0.5    tie       A B          1, 1
    (0.5, 0.7, True, (8, 4)),  #    0.6    A right   tie A        0.5, 0
    (0.1, 0.1, False, (3, 9)),  #   0.1    B right   B B          0, 1
    (0.5, 0.5, False, (9, 3)),  #   0.5    tie       tie tie      0.5, 0.5
    (0.8, 0.4, False, (7, 2)),  #   0.6    A wrong   A B          1, 1
    (1.0, 1.0, False, (2, 7)),  #   1.0    A wrong   A A          1, 0
)


def hand() -> Labelled:
    judgements = [Judgement(a, b) for a, b, _, _ in HAND]
    return Labelled.of(judgements, [label for _, _, label, _ in HAND], [lengths for *_, lengths in HAND])


def test_every_metric_by_hand() -> None:
    values = measure(hand())
    # right: pairs 1, 4, 5; ties: 3, 6
    assert values["accuracy"] == pytest.approx((3 + 2 * 0.5) / 8)
    # both orders pick the label: 1 and 5; pair 4 ties in one order
    assert values["accuracy_both_orders"] == pytest.approx(2 / 8)
    # the same in both orders: 1, 2, 5, 6 (both tie), 8
    assert values["order_agreement"] == pytest.approx(5 / 8)
    assert values["tie_rate"] == pytest.approx(2 / 8)
    squares = 0.2**2 + 0.7**2 + 0.5**2 + 0.4**2 + 0.1**2 + 0.5**2 + 0.6**2 + 1.0**2
    assert values["brier"] == pytest.approx(squares / 8)
    # labelled A: 0.8 0.3 0.5 0.6; labelled B: 0.1 0.5 0.6 1.0. Wins over each of B's:
    # 0.8 beats 3; 0.3 beats 1; 0.5 beats 1 and ties 1; 0.6 beats 2 and ties 1
    assert values["auroc"] == pytest.approx((3 + 1 + 1.5 + 2.5) / 16)
    # unequal lengths: all but pair 3. Longer chosen: 1, 2, 4, 5, 6 (half), 7; not 8. Labelled longer: 1, 4, 5, 8
    assert values["length_bias"] == pytest.approx((5 + 0.5) / 7 - 4 / 7)
    assert values["first_share"] == pytest.approx((1 + 1 + 2 + 0.5 + 1 + 1 + 2 + 1) / 16)
    # bins: [0.5, 0.55) ties: accuracy 0.5, confidence 0.5. [0.6, 0.65) pairs 4, 7: 0.5 against 0.6.
    # [0.7, 0.75) pair 2: 0 against 0.7. [0.8, 0.85) pair 1: 1 against 0.8. [0.9, 0.95) pair 5: 1 against 0.9.
    # [0.95, 1] pair 8: 0 against 1.
    assert values["ece"] == pytest.approx((2 * 0 + 2 * 0.1 + 0.7 + 0.2 + 0.1 + 1.0) / 8)


def test_the_bins_are_those_of_the_ece() -> None:
    bins = reliability(hand())
    assert [b["n"] for b in bins] == [2, 0, 2, 0, 1, 0, 1, 0, 1, 1]
    assert bins[2] == {"low": 0.6, "high": 0.65, "n": 2, "confidence": pytest.approx(0.6), "accuracy": 0.5}
    assert bins[1]["confidence"] is bins[1]["accuracy"] is None
    gaps = [b["n"] * abs(b["accuracy"] - b["confidence"]) for b in bins if b["n"]]
    assert measure(hand())["ece"] == pytest.approx(sum(gaps) / 8)


def test_a_confidence_on_an_edge_belongs_to_the_bin_above() -> None:
    nearly = Judgement(0.8, 0.4)
    assert nearly.p > 0.6  # the mean of two floats
    below = Judgement(0.7, 0.1)
    assert below.p < 0.4
    edges = Labelled.of([nearly, below, Judgement(0.4, 0.4), Judgement(0.35, 0.35)], [True, False, True, True])
    assert [b["n"] for b in reliability(edges)][1:4] == [0, 3, 1]
    assert measure(Labelled.of([nearly, Judgement(0.5, 0.7)], [True, False]))["auroc"] == 0.5


def test_what_is_undefined_is_none() -> None:
    one_class = Labelled.of([Judgement(0.9, 0.8), Judgement(0.2, 0.4)], [True, True], [(3, 3), (4, 4)])
    values, ci95 = measure(one_class), intervals(one_class)
    assert [name for name, value in values.items() if value is None] == ["auroc", "length_bias"]
    assert [name for name, interval in ci95.items() if interval is None] == ["auroc", "length_bias"]
    assert measure(Labelled.of([Judgement(0.9, 0.8)], [True]))["length_bias"] is None
    nothing = Labelled.of([], [])
    assert set(measure(nothing).values()) == {None}
    assert set(intervals(nothing).values()) == {None}
    assert fitted_temperature(nothing) is None
    with pytest.raises(ValueError, match="1 judgements and 2"):
        Labelled.of([Judgement(0.9, 0.8)], [True, False])


def test_weights_are_copies() -> None:
    """Two copies of a pair and a weight of 2 are the same, for every metric."""
    counts = [2, 0, 1, 3, 1, 0, 2, 1]
    rows = [row for row, count in zip(HAND, counts, strict=True) for _ in range(count)]
    copies = Labelled.of([Judgement(a, b) for a, b, _, _ in rows], [r[2] for r in rows], [r[3] for r in rows])
    for name, metric in METRICS.items():
        weighted = metric(hand(), np.array([counts], float))
        assert weighted[0] == pytest.approx(measure(copies)[name]), name


def test_intervals_hold_the_estimate_and_do_not_depend_on_the_order_of_rows() -> None:
    clusters = ["a", "a", "b", "c", "c", "d", "e", "f"]

    def of(rows: list[int]) -> Labelled:
        return Labelled.of(
            [Judgement(*HAND[i][:2]) for i in rows],
            [HAND[i][2] for i in rows],
            [HAND[i][3] for i in rows],
            [clusters[i] for i in rows],
        )

    values, ci95 = measure(of(list(range(8)))), intervals(of(list(range(8))))
    for name, interval in ci95.items():
        assert interval is not None
        value = values[name]
        assert value is not None
        assert interval[0] <= value <= interval[1]
        assert interval[0] < interval[1]
    again = intervals(of([7, 2, 4, 0, 1, 6, 3, 5]))
    for name, interval in ci95.items():
        assert interval == pytest.approx(again[name])
    assert intervals(of(list(range(8))), seed=1) != ci95


def test_pairs_of_one_task_are_resampled_together() -> None:
    """Ten copies of each of twenty tasks know no more than the tasks do."""
    draw = rng.generator("test", "clusters")
    right = draw.random(20) < 0.7
    judgements = [Judgement(0.9, 0.9) if r else Judgement(0.2, 0.2) for r in right]
    alone = Labelled.of(judgements, [True] * 20, clusters=[str(i) for i in range(20)])
    copied = Labelled.of(
        [j for j in judgements for _ in range(10)],
        [True] * 200,
        clusters=[str(i) for i in range(20) for _ in range(10)],
    )
    assert intervals(copied, ["accuracy"])["accuracy"] == pytest.approx(intervals(alone, ["accuracy"])["accuracy"])
    loose = Labelled.of([j for j in judgements for _ in range(10)], [True] * 200)
    wide, narrow = (intervals(x, ["accuracy"])["accuracy"] for x in (copied, loose))
    assert wide is not None
    assert narrow is not None
    assert (wide[1] - wide[0]) > 2 * (narrow[1] - narrow[0])


def test_nothing_but_right_verdicts_has_an_interval_too() -> None:
    right = Labelled.of([Judgement(0.9, 0.8)] * 12, [True] * 12)
    ci95 = intervals(right, ["accuracy", "brier"])
    assert ci95["accuracy"] == wilson(1.0, 12)
    assert ci95["brier"] == pytest.approx([0.15**2, 0.15**2])
    assert intervals(Labelled.of([Judgement(0.9, 0.8)] * 12, [True] * 12, clusters=["t"] * 12))["accuracy"] is None


def test_resamples_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bootstrap(hand(), ["accuracy"], resamples=50)["accuracy"]
    assert whole.shape == (50,)
    monkeypatch.setattr("k2rl.critic.metrics._CELLS", 8 * 7)
    parts = bootstrap(hand(), ["accuracy"], resamples=50)["accuracy"]
    assert parts.shape == (50,)
    assert abs(parts.mean() - 0.5) < 0.1


def test_a_temperature_that_was_applied_is_found_again() -> None:
    draw = rng.generator("test", "temperature")
    honest = draw.uniform(0.02, 0.98, 15_000)
    labels = draw.random(15_000) < honest
    sharpened = [tempered(Judgement(p, p), 1 / 2.5) for p in honest.tolist()]
    labelled = Labelled.of(sharpened, labels.tolist())
    temperature = fitted_temperature(labelled)
    assert temperature == pytest.approx(2.5, rel=0.04)
    assert temperature is not None
    cooled = Labelled.of([tempered(j, temperature) for j in sharpened], labels.tolist())
    before, after = measure(labelled)["ece"], measure(cooled)["ece"]
    assert before is not None
    assert after is not None
    assert after < before / 3
    assert fitted_temperature(cooled) == pytest.approx(1.0, rel=0.02)


def test_certain_verdicts_leave_the_temperature_finite() -> None:
    certain = [Judgement(1.0, 1.0), Judgement(0.0, 0.0)]
    assert fitted_temperature(Labelled.of(certain, [True, False])) == COLDEST
    assert fitted_temperature(Labelled.of(certain, [False, True])) == HOTTEST
    assert fitted_temperature(Labelled.of([Judgement(0.5, 0.5)], [True])) is None
    three_of_four = fitted_temperature(Labelled.of([Judgement(1.0, 1.0)] * 4, [True, True, True, False]))
    assert three_of_four == pytest.approx(math.log((1 - 1e-6) / 1e-6) / math.log(3), rel=1e-6)
