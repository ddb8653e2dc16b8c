"""95 % intervals of shares and counts."""

from __future__ import annotations

import math


def wilson(share: float, n: int, z: float = 1.96) -> list[float]:
    """Wilson's interval of a share of `n` independent cases; a share of 0 or 1 has a width as well."""
    centre, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return [max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))]


def wilson_count(count: int, n: int) -> list[float]:
    """The same for a count out of `n`; [0, 0] where there are no cases."""
    return [n * bound for bound in wilson(count / n, n)] if n else [0.0, 0.0]
