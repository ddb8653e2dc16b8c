"""Bounds of an accuracy on pairs that are alike within their tasks. Pure.

    share = Share.of([(1.0, "task 1"), (0.0, "task 1"), (1.0, "task 2")])
    low, high = bounds(share, 0.995)

Wilson's formula, with an effective number of pairs and Student's quantile. n pairs count as n / (1 + (m - 1) rho), m
their size-weighted number a task, rho their correlation within tasks: estimated by analysis of variance and shrunk
towards `_PRIOR_RHO`, for few tasks say little of it. A bootstrap over tasks has no width where every pair is right and
is too narrow below some twenty tasks; this bound is neither.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

_PRIOR_RHO, _PRIOR_TASKS = 0.2, 10
"""The correlation within a task that is assumed beforehand, with the weight of so many tasks."""


@dataclass(frozen=True)
class Share:
    """An accuracy: its value, the effective number of pairs behind it, the pairs and the tasks."""

    value: float
    effective: float
    pairs: int
    tasks: int

    @classmethod
    def of(cls, correct: Iterable[tuple[float, str]]) -> Share:
        """From at least one pair: whether it was judged right (0.5 at a tie), and its task."""
        by_task: dict[str, list[float]] = defaultdict(list)
        for right, task in correct:
            by_task[task].append(right)
        sizes = np.array([len(found) for found in by_task.values()], float)
        means = np.array([np.mean(found) for found in by_task.values()])
        n, tasks = int(sizes.sum()), len(by_task)
        value = float((sizes * means).sum() / n)
        weighted = float((sizes**2).sum() / n)
        rho = _PRIOR_RHO
        if 1 < tasks < n:
            between = float((sizes * (means - value) ** 2).sum()) / (tasks - 1)
            spread = (float(((np.array(found) - np.mean(found)) ** 2).sum()) for found in by_task.values())
            inside = sum(spread) / (n - tasks)
            size = (n - weighted) / (tasks - 1)
            if between + inside > 0:
                own = max(0.0, (between - inside) / (between + (size - 1) * inside))
                rho = (tasks * own + _PRIOR_TASKS * _PRIOR_RHO) / (tasks + _PRIOR_TASKS)
        return cls(value, n / (1 + (weighted - 1) * rho), n, tasks)

    @property
    def variance(self) -> float:
        """With two right and two wrong pairs added, so that a share of 1 has one."""
        p = (self.value * self.effective + 2) / (self.effective + 4)
        return p * (1 - p) / self.effective


def bounds(share: Share, confidence: float) -> tuple[float, float]:
    """One-sided lower and upper bounds: Wilson's formula with Student's quantile."""
    n, p, t = share.effective, share.value, student(confidence, share.tasks - 1)
    centre, half = p + t * t / (2 * n), t * math.sqrt(p * (1 - p) / n + t * t / (4 * n * n))
    return max(0.0, (centre - half) / (1 + t * t / n)), min(1.0, (centre + half) / (1 + t * t / n))


def student(confidence: float, freedom: int) -> float:
    """The quantile of Student's distribution, by its expansion around the normal one; within 2 % at 0.995 from 4
    degrees of freedom on."""
    z, v = NormalDist().inv_cdf(confidence), max(freedom, 1)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
