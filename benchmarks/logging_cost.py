"""What writing an iteration down costs: its rows, files and trackers, against the iteration itself.

    python benchmarks/logging_cost.py [--iterations 10] [--json FILE] [key=value …]

Iterations of the quickstart, each timed without and with what `train` does to keep it: the rows of `dump.py`, the run
directory's files, and what `run.trackers` are handed (their own work is on threads of their own). The report is made
once, at the end; told is how long that took for these iterations.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from turns import facts

from k2rl import dump
from k2rl.loop import Run
from k2rl.recipe import Recipe
from k2rl.recipe_files import load
from k2rl.report import page
from k2rl.runlog import RunLog
from k2rl.setup import build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    recipe = load(Recipe, "quickstart", ["run.eval_tasks=0", *args.overrides])
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    about = facts(("torch", "transformers"))
    ratios, kept = list[float](), list[float]()
    parts = build(recipe)
    with tempfile.TemporaryDirectory() as folder:
        log, run = RunLog.open(Path(folder) / "run", recipe, resume=False), Run(recipe, parts)
        for iteration in range(1, args.iterations + 1):
            started = time.perf_counter()
            done = run.iterate(iteration)
            trained = time.perf_counter()
            log.iteration(done.metrics, dump.rows(done.ranked, done.scored, parts.driver.limit))
            kept.append(time.perf_counter() - trained)
            ratios.append((time.perf_counter() - started) / (trained - started))
        size = sum(path.stat().st_size for path in log.folder.rglob("*") if path.is_file())
        log.close()
        started = time.perf_counter()
        page.write([log.folder], log.folder / "report.html")
        reported = time.perf_counter() - started
    parts.close()
    found = {
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "kept_s": statistics.median(kept),
        "bytes_per_iteration": size / args.iterations,
        "report_s": reported,
    }
    print(f"ratio: {found['ratio']:.4f} (an iteration that is written down over the same without)")
    print(
        f"  {1000 * statistics.median(kept):.0f} ms and {size / args.iterations / 1000:.0f} kB an iteration, median of "
        f"{len(kept)}; a report of all {reported:.1f} s"
    )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**about, **found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
