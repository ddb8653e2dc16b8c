"""k2rl against TRL's GRPOTrainer: seconds per iteration of one update each.

    python benchmarks/vs_trl.py [--only NAME …] [--steps N] [--tune] [--json FILE] [key=value …]

Each side is a process of its own; they take steps in turn. The same on both: model, prompts, group size, lengths, loss
(GRPO without a KL term), AdamW and its settings, float32, SDPA attention, two torch threads (k2rl may use them as two
workers of one thread each), verifiers and the threads they run on. The learning rate is so low that both sample from
the same distribution throughout. TRL: no gradient checkpointing, no reference model, one update per batch of samples,
nothing logged or saved, and the batch per device with which it is fastest here, or its continuous batching where that
is: `--tune` tries them. Where a mixture has several budgets, TRL, which knows one, gets the largest. `cpu_s` are the
seconds of all of a side's threads, which a busy machine stretches less.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trl_side
from turns import Link, Measured, Side, facts, in_turn, spread
from workloads import WORKLOADS, Workload, goal, recipe

from k2rl.batch import batches
from k2rl.loop import Run
from k2rl.recipe import Recipe
from k2rl.scoring import score
from k2rl.setup import build

WARMUP = 1


def k2rl_side(link: Link, name: str, made: Recipe) -> None:
    """Iterations of `k2rl train`."""
    run = Run(made, build(made, goal(name)))
    for iteration in itertools.count(1):
        link.wait()
        started, started_cpu = time.perf_counter(), time.process_time()
        done = run.iterate(iteration)
        seconds, cpu = time.perf_counter() - started, time.process_time() - started_cpu
        counts = [float(r.policy_tokens) for g in done.ranked.groups for r in g.rollouts]
        link.send({"s": seconds, "cpu_s": cpu, "sampling": done.metrics["time/rollout"], **spread(counts)})


def gradients_side(link: Link, name: str, made: Recipe) -> None:
    """The gradient of both sides on the same samples, once."""
    parts = build(made, goal(name))
    groups = parts.driver.collect(parts.curriculum.next(3), 1, lambda env: 1.0)
    scored = score(groups, made.envs, parts.objective, 1.0)
    (batch,) = batches(scored.groups, parts.objective, 1, [None], parts.policy.chat.pad_id)
    link.wait()
    theirs = trl_side.gradient_norm(parts, batch)
    link.send({"s": 0.0, "trl": theirs, "k2rl": parts.trainer.step(batch, lr=0.0)["train/grad_norm"]})
    parts.close()


def compare(workload: Workload, folder: Path, steps: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Both sides in turn: medians over steps of their seconds, and of the ratio of neighbouring steps."""
    made = recipe(workload.name, folder, overrides)
    check = Side(gradients_side, workload.name, made)
    norms = check.step()
    check.close()
    sides = {
        "trl": Side(trl_side.run, workload.name, made, workload.trl, WARMUP + steps + 1),
        "k2rl": Side(k2rl_side, workload.name, made),
    }
    found = in_turn(sides, steps, WARMUP)
    for side in sides.values():
        side.close()
    ratios = [a["s"] / b["s"] for a, b in zip(found["trl"], found["k2rl"], strict=True)]
    report: dict[str, Any] = {
        "what": workload.what,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "trl_setting": workload.trl,
        "gradient_norm": {"trl": norms["trl"], "k2rl": norms["k2rl"]},
    }
    for name, measured in found.items():
        report[name] = {key: statistics.median(m[key] for m in measured) for key in measured[0]} | {
            "training": statistics.median(m["s"] - m["sampling"] for m in measured),
            "tokens_all_steps": sum(m["tokens"] for m in measured),
        }
    return report


def tune(workload: Workload, folder: Path, overrides: Sequence[str]) -> dict[str, Measured | str]:
    """Seconds of sampling, training and both per step of each of TRL's settings, the better of two after a warm-up."""
    found: dict[str, Measured | str] = {}
    made = recipe(workload.name, folder, overrides)
    for setting in trl_side.SETTINGS:
        side = Side(trl_side.run, workload.name, made, setting, 4)
        try:
            found[setting] = min(in_turn({"trl": side}, 2)["trl"], key=lambda m: m["s"])
        except RuntimeError as error:
            found[setting] = str(error)
        side.close()
        print(f"{workload.name}: TRL, {setting}: {found[setting]}", file=sys.stderr)
    return found


def show(name: str, report: dict[str, Any]) -> None:
    print(f"ratio: {report['ratio']:.2f} ({name}: TRL's seconds per iteration over k2rl's, median of neighbours)")
    columns = ("sampling", "training", "s", "cpu_s", "tokens", "median", "longest")
    print(f"  {report['what']}; medians per iteration")
    print(" " * 8 + "".join(f"{c:>10}" for c in columns))
    for side in ("trl", "k2rl"):
        m: Measured = report[side]
        print(f"  {side:6}" + "".join(f"{m[c]:10.2f}" if c in columns[:4] else f"{m[c]:10.0f}" for c in columns))
    print("  ratio " + "".join(f"{report['trl'][c] / report['k2rl'][c]:10.2f}" for c in columns[:4]))
    norms = report["gradient_norm"]
    print(f"  gradient norm on the same samples: TRL {norms['trl']:.6f}, k2rl {norms['k2rl']:.6f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[w.name for w in WORKLOADS])
    parser.add_argument("--steps", type=int, help="measured steps per side instead of the workload's own number")
    parser.add_argument("--tune", action="store_true", help="try TRL's settings instead of comparing")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "overrides", nargs="*", help="recipe keys for both sides, such as trainer.micro_batch_tokens=2048"
    )
    args = parser.parse_args()
    about = facts(["torch", "transformers", "trl", "accelerate"])
    reports: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as made:
        for workload in WORKLOADS:
            if args.only and workload.name not in args.only:
                continue
            if args.tune:
                reports[workload.name] = tune(workload, Path(made), args.overrides)
                continue
            reports[workload.name] = compare(workload, Path(made), args.steps or workload.steps, args.overrides)
            show(workload.name, reports[workload.name])
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**about, "workloads": reports}, indent=1) + "\n")


if __name__ == "__main__":
    main()
