"""Tournaments: scores in [0, 1], the same whatever the order of the responses, right under a judge that is right."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from k2rl.critic.records import Judgement
from k2rl.critic.tournament import Config, Outcome, Tournament, strengths

CONFIGS = [
    Config(),
    Config(score="bradley_terry"),
    Config(kind="swiss"),
    Config(kind="swiss", score="bradley_terry", rounds=5),
    Config(kind="anchored", anchor=1),
]
Judge = Callable[[int, int], float | None]


def play(count: int, config: Config, judge: Judge, **more: Any) -> tuple[Outcome, list[list[tuple[int, int]]]]:
    """The outcome and the rounds; `judge` says P(a beats b)."""
    tournament, rounds = Tournament(count, config, **more), []
    while pairs := tournament.asks():
        assert pairs == tournament.asks()
        rounds.append(pairs)
        answers = [judge(a, b) for a, b in pairs]
        tournament.take([None if p is None else Judgement(p, p) for p in answers])
    return tournament.outcome(), rounds


def soft(seed: int, count: int, missing: float = 0.0) -> Judge:
    """A random judge that is of one mind on a pair whichever way round it is asked."""
    draws = np.random.default_rng(seed)
    table = draws.random((count, count))
    table = np.triu(table, 1) + np.tril(1 - table.T, -1)
    gone = np.triu(draws.random((count, count)) < missing, 1)
    return lambda a, b: None if gone[min(a, b), max(a, b)] else float(table[a, b])


def perfect(a: int, b: int) -> float:
    """Lower numbers are better."""
    return float(a < b)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("count", [2, 3, 7, 8])
def test_scores_lie_in_the_unit_interval_and_move_with_their_responses(config: Config, count: int) -> None:
    for seed in range(10):
        judge = soft(seed, count, missing=0.2)
        outcome, rounds = play(count, config, judge)
        assert all(s is None or 0 <= s <= 1 for s in outcome.scores)
        assert outcome.asked == sum(map(len, rounds))
        moved = np.random.default_rng(seed).permutation(count).tolist()  # place -> response
        there = replace(config, anchor=moved.index(1) if config.kind == "anchored" else 0)
        again, _ = play(count, there, lambda a, b, m=moved, j=judge: j(m[a], m[b]), names=moved)  # type: ignore[misc]
        for place, response in enumerate(moved):
            assert again.scores[place] == pytest.approx(outcome.scores[response], abs=1e-9)
        assert again.asked == outcome.asked
        assert again.missing == outcome.missing


@pytest.mark.parametrize("score", ["mean", "bradley_terry"])
def test_a_perfect_judge_ranks_perfectly_by_all_pairs(score: Any) -> None:
    outcome, _ = play(9, Config(score=score), perfect)
    scores = [s for s in outcome.scores if s is not None]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 9
    assert outcome.intransitive == 0.0
    assert outcome.asked == 36


@pytest.mark.parametrize("count", [4, 8, 16, 32])
def test_swiss_finds_best_and_worst_in_log2_rounds(count: int) -> None:
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(count).tolist()
        outcome, rounds = play(count, Config(kind="swiss"), lambda a, b, o=order: perfect(o[a], o[b]))  # type: ignore[misc]
        assert len(rounds) == math.log2(count)
        assert outcome.asked == count // 2 * len(rounds)
        assert [s for s in outcome.scores if s == 1.0] == [outcome.scores[order.index(0)]]
        assert [s for s in outcome.scores if s == 0.0] == [outcome.scores[order.index(count - 1)]]


@pytest.mark.parametrize("count", [2, 3, 5, 6, 8, 11])
def test_swiss_has_no_rematch_and_byes_go_round(count: int) -> None:
    for seed in range(20):
        _, rounds = play(count, Config(kind="swiss", rounds=count // 2), soft(seed, count))
        assert len(rounds) == count // 2
        assert all(len(pairs) == count // 2 for pairs in rounds), "nobody more than the odd one sits out"
        met = [frozenset(pair) for pairs in rounds for pair in pairs]
        assert len(met) == len(set(met))
        byes = [next(iter(set(range(count)).difference(*pairs))) for pairs in rounds if count % 2]
        assert len(byes) == len(set(byes))


def test_swiss_ends_when_everybody_has_met() -> None:
    outcome, _ = play(5, Config(kind="swiss", rounds=100), soft(0, 5))
    assert outcome.asked <= 10


def test_swiss_pairs_those_of_equal_standing() -> None:
    _, (first, second) = play(4, Config(kind="swiss", rounds=2), perfect)
    winners, losers = {min(pair) for pair in first}, {max(pair) for pair in first}
    assert [set(pair) for pair in second] == [winners, losers]


def test_mean_scores_of_all_pairs_average_to_a_half() -> None:
    for seed in range(10):
        outcome, _ = play(7, Config(), soft(seed, 7))
        assert np.mean([s for s in outcome.scores if s is not None]) == pytest.approx(0.5)


def test_scores_by_hand() -> None:
    """0 over 1 with 0.8, 0 and 2 a tie, 2 over 1 with 0.6."""
    p = {(0, 1): 0.8, (0, 2): 0.5, (1, 2): 0.4}
    outcome, _ = play(3, Config(), lambda a, b: p[a, b])
    assert outcome.scores == pytest.approx([0.65, 0.3, 0.55])
    anchored, _ = play(3, Config(kind="anchored", anchor=2), lambda a, b: p.get((a, b), 0.0))
    assert anchored.scores == pytest.approx([0.5, 0.4, 0.5])
    assert (outcome.asked, anchored.asked) == (3, 2)


def test_a_missing_verdict_is_left_out() -> None:
    outcome, _ = play(3, Config(), lambda a, b: None if b == 2 else 0.9)
    assert outcome.scores[:2] == pytest.approx((0.9, 0.1))
    assert outcome.scores[2] is None
    assert (outcome.asked, outcome.missing) == (3, 2)
    fitted, _ = play(3, Config(score="bradley_terry"), lambda a, b: None if b == 2 else 0.9)
    assert fitted.scores[2] is None
    assert fitted.scores[0] is not None
    assert fitted.scores[0] > 0.6
    nothing, _ = play(3, Config(kind="anchored"), lambda a, b: None)
    assert nothing.scores == (None, None, None)


def test_what_is_too_long_loses_unasked() -> None:
    asked: list[tuple[int, int]] = []

    def judge(a: int, b: int) -> float:
        asked.append((a, b))
        return 0.3

    outcome, _ = play(4, Config(sigma=1.5), judge, lengths=[10, 31, 30, 99], reference=20)
    assert asked == [(0, 2)]
    assert outcome.scores == pytest.approx([(1 + 0.3 + 1) / 3, 0.5 / 3, (0.7 + 1 + 1) / 3, 0.5 / 3])
    assert (outcome.asked, outcome.by_length) == (1, 5)
    everyone, rounds = play(4, Config(kind="swiss", sigma=1.0), judge, lengths=[9] * 4, reference=1)
    assert everyone.scores == (0.5,) * 4
    assert rounds == []


def test_circles_are_counted() -> None:
    beats = {(0, 1), (1, 2), (2, 0), (0, 3), (1, 3), (2, 3)}
    outcome, _ = play(4, Config(), lambda a, b: 0.9 if (a, b) in beats else 0.1)
    assert outcome.intransitive == 0.25
    tied, _ = play(3, Config(), lambda a, b: 0.5)
    assert tied.intransitive == 0.0
    pair, _ = play(2, Config(), lambda a, b: 0.5)
    assert pair.intransitive is None


def test_bradley_terry_recovers_known_strengths() -> None:
    true = np.array([1.5, 0.5, 0.0, -0.7, -1.3])
    wins = 1000 / (1 + np.exp(true[None, :] - true[:, None]))
    np.fill_diagonal(wins, 0)
    found = strengths(wins, 0.5)
    np.testing.assert_allclose(found - found.mean(), true, atol=2e-3)


def test_bradley_terry_of_one_game_by_hand() -> None:
    """One win, two ties against the average each: s with 1 - sigma(2 s) + 1 = 2 sigma(s), so s and -s."""
    found = strengths(np.array([[0.0, 1.0], [0.0, 0.0]]), 2.0)
    assert found[0] == pytest.approx(-found[1])
    s = found[0]
    assert 1 / (1 + math.exp(2 * s)) + 1 == pytest.approx(2 / (1 + math.exp(-s)))
    outcome, _ = play(2, Config(score="bradley_terry", prior=2.0), perfect)
    assert outcome.scores[0] == pytest.approx(1 / (1 + math.exp(-2 * s)))


def test_bradley_terry_sees_whom_one_met() -> None:
    """Two wins over the weak are worth less than two over the strong, though their means are equal."""
    p = {(0, 2): 1.0, (0, 3): 1.0, (1, 4): 1.0, (1, 5): 1.0, (2, 6): 1.0, (3, 6): 1.0, (4, 6): 0.0, (5, 6): 0.0}
    outcome, _ = play(7, Config(score="bradley_terry"), lambda a, b: p.get((a, b)))
    assert outcome.scores[0] is not None
    assert outcome.scores[1] is not None
    assert outcome.scores[0] > outcome.scores[1]


def test_fewer_than_two_responses_have_no_scores() -> None:
    assert play(0, Config(), perfect)[0].scores == ()
    assert play(1, Config(kind="swiss"), perfect)[0].scores == (None,)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Tournament(3, Config(kind="anchored", score="bradley_terry")), "kind=anchored"),
        (lambda: Tournament(3, Config(rounds=0)), "rounds"),
        (lambda: Tournament(3, Config(sigma=0.0)), "sigma"),
        (lambda: Tournament(3, Config(prior=0.0)), "prior"),
        (lambda: Tournament(3, Config(kind="anchored", anchor=3)), "anchor 3"),
        (lambda: Tournament(3, Config(sigma=2.0)), "lengths"),
        (lambda: Tournament(3, Config(sigma=2.0), lengths=[1, 2], reference=1), "2 lengths"),
        (lambda: Tournament(3, Config()).take([]), "3 comparisons"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
