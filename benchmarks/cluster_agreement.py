"""Whether a run over Ray, vLLM and DeepSpeed learns what the same run in one process does.

    python benchmarks/cluster_agreement.py [--seeds 3] [key=value …]

Both sides train the quickstart for ten iterations from the same seed: the same tasks in the same order and the same
model, but other draws (vLLM's are its own), so they can agree within the noise of sampling only. Per seed, the means
over iterations of each environment's reward and of the losses are compared; shown are the differences, cluster less one
process, with 95 % t intervals over seeds, and beside them the spread over seeds of one process alone, which is what
sampling does. A pair that is done is not run again. Needs vLLM, Ray and DeepSpeed (`make test-cluster` installs them).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from arms import interval, row

SIDES = {"one process": [], "cluster": ["cluster.address=local"]}
SMALL = ["run.iterations=10", "run.eval_tasks=0"]
KEYS = ("reward/", "success/", "tokens/", "loss/policy", "loss/logratio_sq", "train/grad_norm", "critic/weight")


def trained(side: str, seed: int, folder: Path, overrides: list[str]) -> dict[str, float]:
    """The means over iterations of a run, which is made if it is not there."""
    if not (folder / "summary.json").exists():
        code = "from k2rl.cli import main; main()"
        settings = [f"seed={seed}", *SMALL, *SIDES[side], *overrides]
        command = [sys.executable, "-c", code, "train", "quickstart", *settings, "--run-dir", str(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rows: list[dict[str, Any]] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = {key: statistics.fmean([r[key] for r in rows]) for key in rows[0] if key.startswith(KEYS)}
    if side == "cluster":
        found |= {f"largest {key}": max(r[key] for r in rows) for key in ("sync/gap", "mismatch/max")}
        found["updates proven"] = float(sum("sync/gap" in r for r in rows))
    return found | {"seconds per iteration": statistics.median(r["time/iteration"] for r in rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs") / "cluster_agreement")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cluster_agreement.json")
    parser.add_argument("overrides", nargs="*", help="key=value for both sides")
    args = parser.parse_args()
    told: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for seed in range(1, args.seeds + 1):
        for side in SIDES:
            folder = args.work / f"{side.replace(' ', '-')}-{seed}"
            told[side].append(trained(side, seed, folder, args.overrides))
    alone, cluster = told["one process"], told["cluster"]
    print("| mean over iterations | one process | cluster | difference | spread of one process over seeds |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for key in alone[0]:
        ours, theirs = [t[key] for t in alone], [t[key] for t in cluster]
        mean, half = interval([b - a for a, b in zip(ours, theirs, strict=True)])
        spread = statistics.stdev(ours) if len(ours) > 1 else float("nan")
        both = f"{statistics.fmean(ours):.4f} | {statistics.fmean(theirs):.4f}"
        print(f"| {key} | {both} | {mean:+.4f} ± {half:.4f} | {spread:.4f} |")
    for key in ("largest sync/gap", "largest mismatch/max"):
        print(f"{key}: {max(t[key] for t in cluster):.2g}")
    print(f"updates proven: {sum(t['updates proven'] for t in cluster):.0f}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    made = row("cluster", args.seeds, 0.0, told, args.overrides)
    args.out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
