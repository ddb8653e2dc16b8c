"""How good a judge is, measured on pairs of which it is known which response is better. Pure.

Every metric is a function of labelled judgements and of weights, one row of them per resample: the value of the sample
itself is the one at equal weights, and a bootstrap is a single call. Shapes: N judgements, R resamples.

    labelled = Labelled.of(judgements, labels, lengths, clusters)
    values = measure(labelled)       # {"accuracy": 0.71, …, "auroc": None}: None is undefined
    ci95 = intervals(labelled)       # {"accuracy": [0.62, 0.79], …, "auroc": None}

A tie, P(A) exactly 0.5, chooses neither response: it counts half wherever a choice is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from k2rl import rng
from k2rl.critic.records import Judgement
from k2rl.intervals import wilson

Floats = NDArray[np.float64]

BINS = 10
"""Bins of the confidence max(P, 1 - P), of equal width on [0.5, 1], each with its lower edge."""
COLDEST, HOTTEST = 0.05, 100.0
"""The range of a fitted temperature. At its ends none is best: every verdict is right, or they beat no coin."""
_CLIP = 1e-6
_CELLS = 4_000_000
"""Weights drawn at a time."""


@dataclass(frozen=True)
class Labelled:
    """Judgements on pairs whose better response is known, as columns.

    `a_first_N` and `b_first_N` are P(A is better) in either order, `label_N` is 1 where A is better, else 0,
    `longer_N` is the sign of A's length minus B's, and `cluster_N` says which pairs belong together (by number).
    """

    a_first_N: Floats
    b_first_N: Floats
    label_N: Floats
    longer_N: Floats
    cluster_N: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        judgements: Sequence[Judgement],
        labels: Sequence[bool],
        lengths: Sequence[tuple[int, int]] | None = None,
        clusters: Sequence[str] | None = None,
    ) -> Labelled:
        """Columns of as many judgements as labels.

        Args:
            labels: whether A is the better response.
            lengths: of A and of B; without them no length bias is defined.
            clusters: the task or prompt a pair is of; without them every pair is one of its own.

        Raises:
            ValueError: of different lengths.
        """
        for given in (labels, lengths, clusters):
            if given is not None and len(given) != len(judgements):
                raise ValueError(f"{len(judgements)} judgements and {len(given)} labels, lengths or clusters")
        longer = [0] * len(judgements) if lengths is None else [np.sign(a - b) for a, b in lengths]
        names = range(len(judgements)) if clusters is None else clusters
        return cls(
            np.array([j.a_first for j in judgements], float),
            np.array([j.b_first for j in judgements], float),
            np.array(labels, float),
            np.array(longer, float),
            np.unique(np.array(names), return_inverse=True)[1].astype(np.int64),
        )

    @property
    def p_N(self) -> Floats:  # noqa: N802 -- the shape suffix
        """P(A is better): the mean over both orders, without its last digits: (0.4 + 0.8) / 2 is not quite 0.6."""
        return np.round((self.a_first_N + self.b_first_N) / 2, 12)

    @property
    def correct_N(self) -> Floats:  # noqa: N802
        """1 where the label's response is chosen, 0.5 at a tie, else 0."""
        return _chosen(self.p_N, self.label_N)

    def __len__(self) -> int:
        return len(self.label_N)


Metric = Callable[[Labelled, Floats], Floats]
"""(labelled, weights_R_N) -> values_R, NaN where undefined."""


def accuracy(labelled: Labelled, weights_R_N: Floats) -> Floats:
    """The share of pairs where P(A) is on the label's side of 0.5."""
    return _mean(labelled.correct_N, weights_R_N)


def accuracy_both_orders(labelled: Labelled, weights_R_N: Floats) -> Floats:
    """The share where each order alone picks the label; a tie in either does not."""
    orders = (_chosen(p_N, labelled.label_N) for p_N in (labelled.a_first_N, labelled.b_first_N))
    return _mean(np.minimum(*orders) == 1.0, weights_R_N)


def order_agreement(labelled: Labelled, weights_R_N: Floats) -> Floats:
    """The share where both orders pick the same response; a tie in exactly one of them disagrees."""
    return _mean(np.sign(labelled.a_first_N - 0.5) == np.sign(labelled.b_first_N - 0.5), weights_R_N)


def tie_rate(labelled: Labelled, weights_R_N: Floats) -> Floats:
    """The share where P(A) is exactly 0.5."""
    return _mean(labelled.p_N == 0.5, weights_R_N)


def first_share(labelled: Labelled, weights_R_N: Floats) -> Floats:
    """The share of the verdicts of single orders that prefer the response shown first; without position bias 0.5."""
    first_N = (_chosen(labelled.a_first_N, 1.0) + _chosen(labelled.b_first_N, 0.0)) / 2
    return _mean(first_N, weights_R_N)


def brier(labelled: Labelled, weights_R_N: Floats) -> Floats:
    """The mean squared difference of P(A) and the label; 0.25 for a judge that always says 0.5."""
    return _mean((labelled.p_N - labelled.label_N) ** 2, weights_R_N)


def ece(labelled: Labelled, weights_R_N: Floats) -> Floats:
    """Expected calibration error: |accuracy - confidence| of the bins, weighted by what lies in them."""
    gap_N = labelled.correct_N - _confidence(labelled)
    in_bin_N_B = (_bin(labelled)[:, None] == np.arange(BINS)).astype(float)
    gap_R = np.abs(weights_R_N @ (gap_N[:, None] * in_bin_N_B)).sum(-1)
    return _ratio(gap_R, weights_R_N.sum(-1))


def auroc(labelled: Labelled, weights_R_N: Floats) -> Floats:
    """The chance that P(A) is higher for a pair labelled A than for one labelled B; equal ones count half."""
    if not len(labelled):
        return np.full(len(weights_R_N), np.nan)
    order_N = np.argsort(labelled.p_N, kind="stable")
    starts_V = np.unique(labelled.p_N[order_N], return_index=True)[1]  # V distinct values of P(A)
    sorted_R_N, label_N = weights_R_N[:, order_N], labelled.label_N[order_N]
    a_R_V = np.add.reduceat(sorted_R_N * label_N, starts_V, axis=-1)
    b_R_V = np.add.reduceat(sorted_R_N * (1 - label_N), starts_V, axis=-1)
    below_R_V = np.cumsum(b_R_V, axis=-1) - b_R_V / 2
    return _ratio((a_R_V * below_R_V).sum(-1), a_R_V.sum(-1) * b_R_V.sum(-1))


def length_bias(labelled: Labelled, weights_R_N: Floats) -> Floats:
    """The share choosing the longer response minus the share labelled longer, over pairs of unequal lengths."""
    unequal_N = labelled.longer_N != 0.0
    a_longer_N = (labelled.longer_N > 0.0).astype(float)
    chosen_N = _chosen(labelled.p_N, a_longer_N) - (labelled.label_N == a_longer_N)
    return _ratio(weights_R_N @ (chosen_N * unequal_N), weights_R_N @ unequal_N.astype(float))


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "accuracy_both_orders": accuracy_both_orders,
    "order_agreement": order_agreement,
    "tie_rate": tie_rate,
    "brier": brier,
    "ece": ece,
    "auroc": auroc,
    "length_bias": length_bias,
    "first_share": first_share,
}
_SHARES = frozenset({"accuracy", "accuracy_both_orders", "order_agreement", "tie_rate", "first_share", "auroc"})


def measure(labelled: Labelled, names: Iterable[str] = tuple(METRICS)) -> dict[str, float | None]:
    """The value of each metric; None where it is undefined."""
    ones_1_N = np.ones((1, len(labelled)))
    return {name: _number(METRICS[name](labelled, ones_1_N)[0]) for name in names}


def intervals(
    labelled: Labelled, names: Iterable[str] = tuple(METRICS), *, seed: int = 0, resamples: int = 1000
) -> dict[str, list[float] | None]:
    """95 % intervals by bootstrap over clusters; None where the metric is undefined, or there are fewer than two.

    The estimate is always inside: resampling adds to an ECE, whose quantiles can lie above it. Where no resample
    differs (every pair right, say) the bootstrap knows no width: shares then have Wilson's interval over the clusters.
    """
    names = tuple(names)
    values, draws = measure(labelled, names), bootstrap(labelled, names, seed=seed, resamples=resamples)
    clusters = len(np.unique(labelled.cluster_N))
    result: dict[str, list[float] | None] = {}
    for name in names:
        value, drawn_R = values[name], draws[name][~np.isnan(draws[name])]
        if value is None or clusters < 2:
            result[name] = None
        elif name in _SHARES and np.ptp(drawn_R) == 0.0:
            result[name] = wilson(value, clusters)
        else:
            low, high = np.quantile(drawn_R, (0.025, 0.975)).tolist()
            result[name] = [min(low, value), max(high, value)]
    return result


def bootstrap(
    labelled: Labelled, names: Iterable[str] = tuple(METRICS), *, seed: int = 0, resamples: int = 1000
) -> dict[str, Floats]:
    """Each metric on every resample of the clusters, values_R, NaN where undefined; one resample is the same for all
    metrics, and for judges that saw the same clusters, so that their differences are paired."""
    names, clusters = tuple(names), len(np.unique(labelled.cluster_N))
    draw, parts = rng.generator("bootstrap", seed), []
    rows = max(1, min(resamples, _CELLS // max(1, len(labelled))))
    for start in range(0, resamples, rows) if clusters else ():
        size = min(rows, resamples - start)
        picked_R_C = draw.integers(clusters, size=(size, clusters)) + clusters * np.arange(size)[:, None]
        counts_R_C = np.bincount(picked_R_C.ravel(), minlength=size * clusters).reshape(size, clusters)
        weights_R_N = counts_R_C[:, labelled.cluster_N].astype(float)
        parts.append([METRICS[name](labelled, weights_R_N) for name in names])
    empty = np.full(resamples, np.nan)
    return {name: np.concatenate([p[i] for p in parts]) if parts else empty for i, name in enumerate(names)}


def reliability(labelled: Labelled) -> list[dict[str, Any]]:
    """The bins behind the ECE: `low`, `high`, `n`, and the mean `confidence` and `accuracy`, None in an empty one."""
    bin_N, confidence_N, correct_N = _bin(labelled), _confidence(labelled), labelled.correct_N
    rows = []
    for b in range(BINS):
        inside_N = bin_N == b
        n = int(inside_N.sum())
        rows.append(
            {
                "low": (BINS + b) / (2 * BINS),
                "high": (BINS + b + 1) / (2 * BINS),
                "n": n,
                "confidence": float(confidence_N[inside_N].mean()) if n else None,
                "accuracy": float(correct_N[inside_N].mean()) if n else None,
            }
        )
    return rows


# --- temperature -----------------------------------------------------------------------------------------------


def fitted_temperature(labelled: Labelled) -> float | None:
    """The T by which the log-odds of each order's P(A) are to be divided for the labels to be likeliest.

    Above 1 the judge is too sure of itself. Within [COLDEST, HOTTEST]; None where every verdict is a tie.
    """
    odds_M = np.concatenate([_log_odds(labelled.a_first_N), _log_odds(labelled.b_first_N)])
    signed_M = odds_M * (2 * np.tile(labelled.label_N, 2) - 1)
    if not np.any(signed_M):
        return None

    def rises(sharpness: float) -> bool:
        return bool((signed_M * _sigmoid(-sharpness * signed_M)).sum() > 0)

    low, high = 1 / HOTTEST, 1 / COLDEST
    if not rises(low):
        return HOTTEST
    if rises(high):
        return COLDEST
    for _ in range(60):  # The log-likelihood is concave in 1 / T: halve to where it stops rising.
        middle = (low + high) / 2
        low, high = (middle, high) if rises(middle) else (low, middle)
    return 2 / (low + high)


def tempered(judgement: Judgement, temperature: float) -> Judgement:
    """The judgement with the log-odds of both orders divided by a temperature."""
    odds_2 = _log_odds(np.array([judgement.a_first, judgement.b_first]))
    a_first, b_first = _sigmoid(odds_2 / temperature).tolist()
    return Judgement(a_first, b_first)


def _log_odds(p_N: Floats) -> Floats:
    clipped_N = np.clip(p_N, _CLIP, 1 - _CLIP)
    odds_N: Floats = np.log(clipped_N) - np.log1p(-clipped_N)
    return odds_N


def _sigmoid(x_N: Floats) -> Floats:
    p_N: Floats = np.exp(-np.logaddexp(0.0, -x_N))
    return p_N


# --- pieces ----------------------------------------------------------------------------------------------------


def _chosen(p_N: Floats, a_N: Floats | float) -> Floats:
    """1 where P(A) chooses A and `a_N` is 1, or B and it is 0; 0.5 at a tie; else 0."""
    choice_N: Floats = 0.5 + np.sign(p_N - 0.5) * (np.asarray(a_N, float) - 0.5)
    return choice_N


def _confidence(labelled: Labelled) -> Floats:
    return np.round(np.abs(labelled.p_N - 0.5) + 0.5, 12)


def _bin(labelled: Labelled) -> NDArray[np.int64]:
    edges = np.arange(BINS + 1, 2 * BINS) / (2 * BINS)
    return np.searchsorted(edges, _confidence(labelled), side="right").astype(np.int64)


def _mean(values_N: NDArray[Any], weights_R_N: Floats) -> Floats:
    return _ratio(weights_R_N @ values_N.astype(float), weights_R_N.sum(-1))


def _ratio(above_R: Floats, below_R: Floats) -> Floats:
    ratio_R = np.full(len(above_R), np.nan)
    np.divide(above_R, below_R, out=ratio_R, where=below_R > 0)
    return ratio_R


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
