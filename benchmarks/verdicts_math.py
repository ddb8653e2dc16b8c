"""Math verdicts per second: MathAnswer, with its hard kill, against math-verify called in this process.

    python benchmarks/verdicts_math.py [--rounds 6] [--pairs 200] [--json FILE]

Both sides judge the same pairs in turn, new ones in every round, so that neither side's caches have seen them. The
baseline is `math_verify.verify(parse(gold), parse(answer))` as shipped, time-outs by SIGALRM included, in the main
thread. Which answers are right is known from how they are made, so the errors of both sides are counted.

    numbers   grade-school answers: whole numbers and decimals; MathAnswer needs no grader process for them
    latex     competition answers, each gold answer once: all of them go to the grader processes
    groups    the same, eight responses to each gold answer, as in a group of rollouts
    threads   `latex` from as many threads as cores, which in-process math-verify can't be called from
    isolation `latex`, the baseline being the grader's own code in this process: what the processes alone cost
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import math_verify
from k2rl_rewards.math_answer import MathAnswer, final_answer
from k2rl_rewards.math_grader import math_grader


class Pair(NamedTuple):
    gold: str
    response: str
    right: bool


def number_pairs(draw: random.Random, count: int) -> list[Pair]:
    """Whole numbers and decimals after `####`, a third of them wrong."""
    pairs = []
    for _ in range(count):
        value = draw.randrange(-100, 5_000_000) / draw.choice([1, 1, 1, 4])
        right = draw.random() < 2 / 3
        given = value if right else value + draw.choice([-10, -1, 1, 0.5])
        text = draw.choice([f"{given:,.2f}", f"{given:.2f}", f"${given:,.2f}"])
        pairs.append(Pair(f"{value:.2f}", f"First {draw.randrange(99)} + 1, so it is\n#### {text}", right))
    return pairs


def latex_pairs(draw: random.Random, count: int, answers_per_gold: int = 1) -> list[Pair]:
    """Fractions, radicals, polynomials, tuples, intervals, sets and matrices, spelled otherwise; a third are wrong."""
    pairs: list[Pair] = []
    while len(pairs) < count:
        a, b, c = (draw.randrange(2, 400) for _ in range(3))
        make = draw.choice(SHAPES)
        gold, _ = make(a, b, c, 1)
        for _ in range(min(answers_per_gold, count - len(pairs))):
            right = draw.random() < 2 / 3
            _, answer = make(a, b, c + (0 if right else draw.randrange(1, 5_000)), draw.randrange(2, 5_000))
            pairs.append(Pair(gold, f"Thus it is $\\boxed{{{answer}}}$.", right))
    return pairs


# (a, b, c, k) -> gold answer, another spelling of it: k is a factor that changes nothing.
SHAPES: Sequence[Callable[[int, int, int, int], tuple[str, str]]] = (
    lambda a, b, c, k: (f"\\frac{{{a}}}{{{c}}}\\pi", f"\\frac{{{k * a}\\pi}}{{{k * c}}}"),
    lambda a, b, c, k: (f"{a}\\sqrt{{{c}}}", f"\\frac{{{a * k}\\sqrt{{{c}}}}}{{{k}}}"),
    lambda a, b, c, k: (f"{a}x^2+{b}x+{c}", f"{c} + {b}x + \\frac{{{k * a}}}{{{k}}}x^2"),
    lambda a, b, c, k: (f"({a}, \\sqrt{{{c}}})", f"\\left({a}, \\frac{{{k}\\sqrt{{{c}}}}}{{{k}}}\\right)"),
    lambda a, b, c, k: (
        f"[\\sqrt{{{a}}}, {b}\\sqrt{{{c}}})",
        f"[\\sqrt{{{a}}}, \\frac{{{k * b}\\sqrt{{{c}}}}}{{{k}}})",
    ),
    lambda a, b, c, k: (f"\\frac{{x+{a}}}{{{c}}}", f"\\frac{{{k}x+{k * a}}}{{{k * c}}}"),
    lambda a, b, c, k: (
        f"\\begin{{pmatrix}} {a} & {b} \\\\ {c} & 1 \\end{{pmatrix}}",
        f"\\begin{{pmatrix}} {a} & \\frac{{{k * b}}}{{{k}}} \\\\ {c} & 1 \\end{{pmatrix}}",
    ),
    lambda a, b, c, k: (f"{a}+{c}i", f"\\frac{{{k * c}i}}{{{k}}}+{a}"),
)


def timed(judge: Callable[[Pair], bool], pairs: Sequence[Pair], threads: int = 1) -> tuple[float, int]:
    """Seconds, and how many verdicts are false."""
    if threads == 1:
        started = time.perf_counter()
        found = [judge(p) for p in pairs]
        return time.perf_counter() - started, sum(f != p.right for f, p in zip(found, pairs, strict=True))
    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        found = list(pool.map(judge, pairs))
        return time.perf_counter() - started, sum(f != p.right for f, p in zip(found, pairs, strict=True))


def math_verdicts(rounds: int = 6, pairs: int = 200) -> dict[str, Any]:
    """Rates, ratios and errors of both sides by workload; the first round of each warms up and is left out."""
    reward = MathAnswer()
    cores = len(os.sched_getaffinity(0))

    def ours(pair: Pair) -> bool:
        return reward(pair.response, {"answer": pair.gold}).score == 1.0

    def baseline(pair: Pair) -> bool:
        return bool(math_verify.verify(math_verify.parse(f"\\boxed{{{pair.gold}}}"), math_verify.parse(pair.response)))

    grade = math_grader()

    def unguarded(pair: Pair) -> bool:
        return grade(pair.gold, final_answer(pair.response))

    workloads: dict[str, tuple[Callable[[random.Random], list[Pair]], int]] = {
        "latex": (lambda draw: latex_pairs(draw, pairs), 1),
        "groups": (lambda draw: latex_pairs(draw, pairs, 8), 1),
        "threads": (lambda draw: latex_pairs(draw, pairs), cores),
        "isolation": (lambda draw: latex_pairs(draw, pairs), 1),
        "numbers": (lambda draw: number_pairs(draw, 5 * pairs), 1),
    }
    report: dict[str, Any] = {}
    for name, (make, threads) in workloads.items():
        rates: dict[str, list[float]] = {"ours": [], "baseline": []}
        errors = {"ours": 0, "baseline": 0}
        total = 0
        for turn in range(rounds + 1):
            made = make(random.Random(f"{name} {turn}"))
            sides = [("ours", ours, threads), ("baseline", unguarded if name == "isolation" else baseline, 1)]
            for side, judge, by in sides if turn % 2 else sides[::-1]:
                seconds, false = timed(judge, made, by)
                if turn:
                    rates[side].append(len(made) / seconds)
                    errors[side] += false
            total += len(made) if turn else 0
        ratios = [a / b for a, b in zip(rates["ours"], rates["baseline"], strict=True)]
        report[name] = {
            "ratio": statistics.median(ratios),
            "ratios": ratios,
            "per_second": statistics.median(rates["ours"]),
            "baseline_per_second": statistics.median(rates["baseline"]),
            "pairs": total,
            "false_verdicts": errors["ours"],
            "baseline_false_verdicts": errors["baseline"],
            "threads": threads,
        }
    return report


def show(report: dict[str, Any]) -> None:
    """Print what `math_verdicts` found."""
    for name, found in report.items():
        other = "the same code in this process" if name == "isolation" else "in-process math-verify"
        print(f"ratio: {found['ratio']:.2f} ({name}: math verdicts/s with a hard kill over {other})")
        print(
            f"  {found['per_second']:.0f}/s over {found['baseline_per_second']:.0f}/s, {found['threads']} thread(s); "
            f"false verdicts of {found['pairs']}: {found['false_verdicts']}, baseline "
            f"{found['baseline_false_verdicts']}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report = math_verdicts(args.rounds, args.pairs)
    show(report)
    facts = {
        "cpu": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "python": platform.python_version(),
        **{name: version(name) for name in ("math-verify", "latex2sympy2_extended", "sympy")},
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
    }
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**report, **facts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
