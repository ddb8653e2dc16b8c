"""95 % intervals of shares and counts."""

from __future__ import annotations

import math
from collections.abc import Sequence


def wilson(share: float, n: float, z: float = 1.96) -> list[float]:
    """Wilson's interval of a share of `n` independent cases; a share of 0 or 1 has a width as well."""
    centre, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return [max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))]


def wilson_count(count: int, n: int) -> list[float]:
    """The same for a count out of `n`; [0, 0] where there are no cases."""
    return [n * bound for bound in wilson(count / n, n)] if n else [0.0, 0.0]


def wilson_clustered(counts: Sequence[tuple[int, int]]) -> list[float]:
    """The interval of a share of cases that come in clusters (hits, size): Wilson's, of as many independent cases as
    tell as much. Where every case came out alike, of as many as there are clusters."""
    n, clusters = sum(size for _, size in counts), len(counts)
    share = sum(hits for hits, _ in counts) / n
    spread = sum((hits - share * size) ** 2 for hits, size in counts)
    if not spread or clusters < 2:
        return wilson(share, clusters)
    variance = spread / n**2 * clusters / (clusters - 1)
    return wilson(share, min(n, share * (1 - share) / variance))
