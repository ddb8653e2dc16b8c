"""Keyed randomness: a draw depends on what it is for, and on nothing else."""

from __future__ import annotations

import numpy as np

from k2rl import rng


def test_keys_tell_everything_apart() -> None:
    parts = [(0, "a"), (0, "b"), (1, "a"), (0, "a", 0), ("0", "a"), (0.0, "a"), ("0a",), ("0", "a", "")]
    assert len({rng.key(*p) for p in parts}) == len(parts)
    assert rng.key("a", "b") != rng.key("ab")


def test_keys_are_stable_across_machines_and_versions() -> None:
    assert rng.key(0, "rollout", 1) == 107859508838388877
    assert rng.key(0, np.str_("rollout"), 1) == 107859508838388877
    assert rng.key(np.float64(0.5)) == rng.key(0.5)


def test_generators_of_one_name_draw_alike_whatever_was_drawn_before() -> None:
    first = rng.generator("pool", 3).integers(1000, size=8)
    rng.generator("other").random(100)
    assert (first == rng.generator("pool", 3).integers(1000, size=8)).all()
    assert (first != rng.generator("pool", 4).integers(1000, size=8)).any()


def test_uniforms_do_not_depend_on_their_neighbours() -> None:
    keys = np.array([rng.key("s", k) for k in range(5)], dtype=np.uint64)
    positions = np.array([0, 7, 7, 100, 2**40], dtype=np.uint64)
    together = rng.uniforms(keys, positions)
    alone = np.concatenate([rng.uniforms(keys[i : i + 1], positions[i : i + 1]) for i in range(5)])
    assert (together == alone).all()
    assert len(set(together)) == 5


def test_uniforms_are_uniform_and_independent() -> None:
    n = 200_000
    along = rng.uniforms(np.full(n, 42, np.uint64), np.arange(n, dtype=np.uint64))
    across = rng.uniforms(np.arange(n, dtype=np.uint64), np.zeros(n, np.uint64))
    for draws in (along, across):
        assert draws.min() >= 0.0
        assert draws.max() < 1.0
        counts, _ = np.histogram(draws, bins=100, range=(0, 1))
        chi_square = float(((counts - n / 100) ** 2 / (n / 100)).sum())
        assert chi_square < 149  # the 99.9 % quantile with 99 degrees of freedom
        assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 4 / np.sqrt(n)
    assert abs(np.corrcoef(along, across)[0, 1]) < 4 / np.sqrt(n)


def test_splits_follow_content_in_the_stated_share() -> None:
    words = [f"w{i}" for i in range(20_000)]
    test = [rng.in_test_split("words", w) for w in words]
    assert test == [rng.in_test_split("words", w) for w in words]
    assert abs(np.mean(test) - 0.2) < 0.01
    assert not any(rng.in_test_split(w, share=0.0) for w in words[:100])
    assert all(rng.in_test_split(w, share=1.0) for w in words[:100])
