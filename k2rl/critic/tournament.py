"""From comparisons of a group's responses to a score for each. Pure: who is asked, and what is made of the answers.

    tournament = Tournament(len(responses), Config(kind="swiss"))
    while pairs := tournament.asks():
        tournament.take([judge(responses[a], responses[b]) for a, b in pairs])
    outcome = tournament.outcome()

The kinds:

* `all_pairs`: every pair, K (K - 1) / 2 comparisons.
* `swiss`: rounds in which each response meets one of about its own standing that it has not met, K / 2 comparisons a
  round. With an odd number one sits out, the lowest that has not yet; late, so do those with nobody left to meet.
* `anchored`: everyone against one response, K - 1 comparisons; r_i = P(i beats the anchor), the anchor's own is 0.5.

A missing verdict is left out; a response without any result has no score. No result depends on the order in which the
responses are given, if their `names` move with them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from k2rl import rng
from k2rl.critic.records import Judgement

Pair = tuple[int, int]
"""A and B of a judgement."""

_REMATCH = 10.0
"""What a rematch costs; a difference of standings costs 1 at most."""


KINDS = ("all_pairs", "swiss", "anchored")
SCORES = ("mean", "bradley_terry")


@dataclass
class Config:
    """How a group is compared and scored, see docs/critic.md.

    Args:
        kind: `all_pairs`, `swiss` or `anchored`.
        score: `mean`: the mean win probability over the comparisons a response had. `bradley_terry`: the mean win
            probability against the rest of the group by a fit of strengths, which also weighs whom it met.
        rounds: of `swiss`, 1 or more; null: log2 K, rounded up.
        anchor: of `anchored`: the index everyone is compared with.
        sigma: a response longer than sigma x the reference length loses to one that is not; two such are a tie; nobody
            is asked about either. null: length decides nothing.
        prior: of `bradley_terry`: each response has so many ties against one of average strength (own choice: a half),
            so that strengths stay finite where somebody always wins.
    """

    kind: str = "all_pairs"
    score: str = "mean"
    rounds: int | None = None
    anchor: int = 0
    sigma: float | None = None
    prior: float = 0.5

    def problems(self) -> list[str]:
        """What is wrong with these settings: one line each, the key first."""
        found = []
        if self.kind not in KINDS:
            found.append(f"kind is {self.kind!r}: allowed are {', '.join(KINDS)}")
        if self.score not in SCORES:
            found.append(f"score is {self.score!r}: allowed are {', '.join(SCORES)}")
        if self.kind == "anchored" and self.score != "mean":
            found.append("score must be mean with kind=anchored: it is the win probability against the anchor")
        if self.rounds is not None and self.kind != "swiss":
            found.append(f"rounds has no effect with kind={self.kind}: it belongs to swiss, set it to null")
        elif self.rounds is not None and self.rounds < 1:
            found.append(f"rounds is {self.rounds}: it must be 1 or more, or null")
        if self.anchor and self.kind != "anchored":
            found.append(f"anchor has no effect with kind={self.kind}: it belongs to anchored, set it to 0")
        elif self.anchor < 0:
            found.append(f"anchor is {self.anchor}: it must be 0 or more")
        if self.sigma is not None and not 0 < self.sigma < math.inf:
            found.append(f"sigma is {self.sigma}: it must be above 0")
        if not 0 < self.prior < math.inf:
            found.append(f"prior is {self.prior}: it must be above 0")
        elif self.prior != type(self).prior and self.score != "bradley_terry":
            found.append(f"prior has no effect with score={self.score}: it belongs to bradley_terry")
        return found


@dataclass(frozen=True)
class Outcome:
    """What a tournament found: a score in [0, 1] per response, None without any result.

    `asked` comparisons were spent, of which `missing` had no verdict; `by_length` were decided without asking.
    `intransitive` is the share of triples judged to be a circle (A over B, B over C, C over A) among those all three
    pairs of which have a verdict; None without such a triple.
    """

    scores: tuple[float | None, ...]
    asked: int
    missing: int
    by_length: int
    intransitive: float | None


class Tournament:
    """See the module.

    Args:
        count: K, how many responses there are.
        names: one per response, for ties of the standing: they are broken by a draw keyed by these. Default: indices.
        lengths: of the responses, where `config.sigma` is given.
        reference: l0, in the unit of the lengths.

    Raises:
        ValueError: the settings have problems; an anchor that is not there; sigma without lengths or reference, or of
            another count.
    """

    def __init__(
        self,
        count: int,
        config: Config,
        *,
        names: Sequence[str | int] | None = None,
        lengths: Sequence[float] | None = None,
        reference: float | None = None,
    ) -> None:
        if problems := config.problems():
            raise ValueError(problems[0])
        self._count, self._config = count, config
        if config.kind == "anchored" and not 0 <= config.anchor < count:
            raise ValueError(f"anchor {config.anchor} is none of {count} responses")
        names = range(count) if names is None else names
        self._draw = [rng.key("tournament", name) for name in names]
        self._too_long = [False] * count
        if config.sigma is not None:
            if lengths is None or reference is None:
                raise ValueError("sigma needs the responses' lengths and a reference length")
            self._too_long = [length > config.sigma * reference for length in lengths]
        if len(self._draw) != count or len(self._too_long) != count:
            raise ValueError(f"{count} responses, {len(self._draw)} names, {len(self._too_long)} lengths")
        self._p: dict[Pair, float] = {}
        """P(a beats b) of the results, by judge or by length."""
        self._met: set[Pair] = set()
        self._sat_out: set[int] = set()
        self._judged: set[Pair] = set()
        self._asked = self._missing = self._round = 0
        self._open: list[Pair] | None = None

    def asks(self) -> list[Pair]:
        """What is to be judged next, a round at a time; the same until `take`; empty at the end."""
        while self._open is None and (pairs := self._next_round()):
            self._round += 1
            self._met |= {pair for a, b in pairs for pair in ((a, b), (b, a))}
            by_length = [(a, b) for a, b in pairs if self._too_long[a] or self._too_long[b]]
            for a, b in by_length:
                self._p[a, b] = 0.5 + 0.5 * (self._too_long[b] - self._too_long[a])
            # A round that length decides altogether is over.
            self._open = [pair for pair in pairs if pair not in by_length] or None
        return self._open or []

    def take(self, judgements: Sequence[Judgement | None]) -> None:
        """The answers to `asks`, in its order; None: no verdict.

        Raises:
            ValueError: not as many as were asked for.
        """
        pairs = self.asks()
        if len(pairs) != len(judgements):
            raise ValueError(f"{len(pairs)} comparisons were asked for, got {len(judgements)} answers")
        self._open = None
        self._asked += len(pairs)
        for pair, judgement in zip(pairs, judgements, strict=True):
            if judgement is None:
                self._missing += 1
            else:
                self._p[pair] = judgement.p
                self._judged.add(pair)

    def outcome(self) -> Outcome:
        """Scores by the results there are."""
        wins, games = self._table()
        if self._config.score == "bradley_terry":
            scores = _mean_wins(strengths(wins, self._config.prior), games)
        else:
            scores = _shares(wins, games)
        if self._config.kind == "anchored" and self._p:
            scores[self._config.anchor] = 0.5
        by_length = len(self._p) - len(self._judged)
        return Outcome(tuple(scores), self._asked, self._missing, by_length, self._intransitive())

    # --- who meets whom --------------------------------------------------------------------------------------

    def _next_round(self) -> list[Pair]:
        if self._config.kind == "swiss":
            rounds = self._config.rounds or math.ceil(math.log2(max(self._count, 1)))
            return self._swiss() if self._round < rounds else []
        if self._round:
            return []
        if self._config.kind == "anchored":
            return [(i, self._config.anchor) for i in range(self._count) if i != self._config.anchor]
        return list(itertools.combinations(range(self._count), 2))

    def _swiss(self) -> list[Pair]:
        """From the best down, each with the next; then two pairs exchange partners as long as that brings standings
        nearer or saves a rematch. Before round K / 2 a rematch always can be saved: the few who have met spoil fewer
        exchanges than there are."""
        # Without their last digits, which depend on the order of the sums.
        standing = [0.5 if share is None else round(share, 9) for share in _shares(*self._table())]
        left = sorted(range(self._count), key=lambda i: (-standing[i], self._draw[i]))
        if len(left) % 2:
            bye = next((i for i in reversed(left) if i not in self._sat_out), left[-1])
            self._sat_out.add(bye)
            left.remove(bye)
        pairs = list(zip(left[::2], left[1::2], strict=True))

        def cost(*pairs: Pair) -> float:
            return sum(
                (standing[a] - standing[b]) ** 2 + _REMATCH * (pair in self._met) for pair in pairs for a, b in [pair]
            )

        while (better := _exchange(pairs, cost)) is not None:
            pairs = better
        return [pair for pair in pairs if pair not in self._met]

    # --- what came of it -------------------------------------------------------------------------------------

    def _table(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Wins of row against column, and how often they met with a result: (K, K) each."""
        wins, games = np.zeros((2, self._count, self._count))
        for (a, b), p in self._p.items():
            wins[a, b], wins[b, a] = p, 1 - p
            games[a, b] = games[b, a] = 1
        return wins, games

    def _intransitive(self) -> float | None:
        sign = {}
        for a, b in self._judged:
            sign[a, b] = float(np.sign(self._p[a, b] - 0.5))
            sign[b, a] = -sign[a, b]
        circles = [
            abs(sign[a, b] + sign[b, c] + sign[c, a]) == 3
            for a, b, c in itertools.combinations(range(self._count), 3)
            if (a, b) in sign and (b, c) in sign and (c, a) in sign
        ]
        return sum(circles) / len(circles) if circles else None


def _exchange(pairs: list[Pair], cost: Callable[..., float]) -> list[Pair] | None:
    """The pairs after the exchange of partners that saves most, the first of equal ones; None: none saves anything."""
    found, most = None, 0.0
    for (m, (a, b)), (n, (c, d)) in itertools.combinations(enumerate(pairs), 2):
        for new in (((a, c), (b, d)), ((a, d), (b, c))):
            saved = round(cost((a, b), (c, d)) - cost(*new), 9)
            if saved > most:
                found, most = list(pairs), saved
                found[m], found[n] = new
    return found


def strengths(wins: NDArray[np.float64], prior: float) -> NDArray[np.float64]:
    """Bradley-Terry strengths (K,) for a table of wins (K, K), fractions allowed: P(i beats j) is
    1 / (1 + e^(s_j - s_i)).

    The likeliest ones, each response having `prior` more ties against one of strength 0: with these there is exactly
    one maximum.
    """
    games, found = wins + wins.T, np.zeros(len(wins))

    def objective(s: NDArray[np.float64]) -> float:
        of_games = wins * np.logaddexp(0, s[None, :] - s[:, None])
        return float(of_games.sum() + prior / 2 * (np.logaddexp(0, s) + np.logaddexp(0, -s)).sum())

    for _ in range(100):
        p, own = _sigmoid(found[:, None] - found[None, :]), _sigmoid(found)
        gradient = (games * p - wins).sum(1) + prior * (own - 0.5)
        if np.abs(gradient).max(initial=0) < 1e-10:
            break
        curvature = games * p * (1 - p)
        hessian = np.diag(curvature.sum(1) + prior * own * (1 - own)) - curvature
        step, size, now = np.linalg.solve(hessian, gradient), 1.0, objective(found)
        while size > 1e-6 and objective(found - size * step) > now:
            size /= 2
        found = found - size * step
    return found


def _mean_wins(s: NDArray[np.float64], games: NDArray[np.float64]) -> list[float | None]:
    """The mean win probability against the others, of those that have a result."""
    there = games.sum(1) > 0
    p = _sigmoid(s[:, None] - s[None, :])
    means = (p[:, there].sum(1) - 0.5) / max(there.sum() - 1, 1)
    return [min(max(m, 0.0), 1.0) if t else None for m, t in zip(means.tolist(), there.tolist(), strict=True)]


def _shares(wins: NDArray[np.float64], games: NDArray[np.float64]) -> list[float | None]:
    return [float(w / n) if n else None for w, n in zip(wins.sum(1), games.sum(1), strict=True)]


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    p: NDArray[np.float64] = np.exp(-np.logaddexp(0, -x))
    return p
