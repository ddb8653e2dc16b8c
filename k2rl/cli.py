"""The command line. Exit codes: 0 done, 1 the run failed (named reason), 2 the user's input is wrong.

Commands import what they need when they run, so that `k2rl --help` and `k2rl recipes` start without torch.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from k2rl import assets, cli_data, cli_rewards, cli_rubrics
from k2rl.cli_shared import JsonFlag
from k2rl.cli_shared import arguments as _arguments
from k2rl.cli_shared import print_json as _print_json
from k2rl.cli_shared import print_table as _print_table
from k2rl.errors import RunError, UserError
from k2rl.terminal import shown_lines
from k2rl.types import Split

if TYPE_CHECKING:
    from k2rl.recipe import Recipe

app = typer.Typer(
    help="An RL post-training gym.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
env_app = typer.Typer(help="List environments, check one, or start a new one.", no_args_is_help=True)
app.add_typer(env_app, name="env")
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_rubrics.app, name="rubrics")
app.add_typer(cli_rewards.app, name="eval-rewards")
sandbox_app = typer.Typer(help="Run untrusted programs for others.", no_args_is_help=True)
app.add_typer(sandbox_app, name="sandbox")


@sandbox_app.callback()
def _sandbox() -> None:
    """A group with one command keeps its name."""


RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A shipped name (see `k2rl recipes`), or the path of a .yaml.")
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[key=value]…", help="Override keys of the recipe.")]


def main() -> None:
    """Entry point: runs the command, and ends the process whoever would hold it up."""
    try:
        _run()
    except SystemExit as stop:
        if any(thread.name.startswith("tracker ") for thread in threading.enumerate()):
            # It hangs, and so may what its package does at exit. The run has written everything.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(stop.code or 0))
        raise


def _run() -> None:
    """Run the command, and turn the two named errors into one line and an exit code."""
    # Before torch is loaded: threads that wait for work must not spin on the cores that have some.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        app()
    except UserError as error:
        _end(f"error: {shown_lines(str(error))}", 2)
    except RunError as error:
        _end(f"run failed: {shown_lines(str(error))}", 1)
    except SystemExit as stop:
        if stop.code == 130:  # typer's code for Ctrl-C, which it reports without a word
            _end("interrupted", 130)
        raise


def _end(line: str, code: int) -> None:
    print(" ".join(line.split("\n")), file=sys.stderr)
    sys.exit(code)


@app.command()
def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Where the run is written  [default: runs/<recipe>-<time>]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but what goes wrong.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a policy by RL."""
    from k2rl.recipe import Recipe
    from k2rl.recipe_files import load

    loaded = load(Recipe, recipe, overrides or [])
    where = run_dir or _default_run_dir(Path(recipe).stem, resume)
    from k2rl.loop import train as run

    summary = run(loaded, where, resume=resume, quiet=quiet or as_json)
    if as_json:
        _print_json(summary)
    if quiet or as_json:
        return
    from rich.console import Console

    from k2rl.eval_policy import before_after

    if summary["eval_after"]:
        Console(width=None if sys.stdout.isatty() else 150).print(before_after(summary))
    critic = f", its critic in {where / 'critic'}" if (where / "critic").exists() else ""
    print(f"the model is in {where / 'model'}{critic}, what happened in {where}")


def _default_run_dir(stem: str, resume: bool) -> Path:
    """`runs/<stem>-<time>`.

    Raises:
        UserError: asked to resume, which needs to be told what; the newest run is suggested.
    """
    if resume:
        runs = sorted(Path("runs").glob(f"{stem}-*"), key=lambda p: p.stat().st_mtime)
        newest = f", such as --run-dir {runs[-1]}" if runs else ""
        raise UserError(f"--resume needs --run-dir: name the run to go on with{newest}")
    return Path("runs") / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"


@app.command()
def sft(
    recipe: RecipeName,
    out: Annotated[Path, typer.Option(help="A new folder for the model.")],
    overrides: Overrides = None,
    as_json: JsonFlag = False,
) -> None:
    """Warm-start a model on demonstrations from the environments' gold answers."""
    from k2rl.recipe import SftRecipe
    from k2rl.recipe_files import load

    loaded = load(SftRecipe, recipe, overrides or [])
    from k2rl.sft import sft as run

    report = run(loaded, out, quiet=as_json)
    if as_json:
        _print_json(report)


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Option(help="A transformers folder, a hub id, or nano.")],
    env: Annotated[list[str], typer.Option(help="name, module:Class or file.py:Class; may repeat.")],
    arg: Annotated[
        list[str] | None, typer.Option(metavar="key=value", help="An argument of the (only) env; may repeat.")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Tasks per environment.")] = 200,
    k: Annotated[int, typer.Option("--k", min=1, help="Report pass@1 up to pass@k.")] = 1,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Responses per task  [default: 4, or k where it is larger; 1 if greedy]"),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0 is greedy.")] = 1.0,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Budget of a response  [default: the task's or env's]")
    ] = None,
    seed: int = 0,
    split: Split = "test",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the report here.")] = None,
) -> None:
    """Evaluate a model: pass@k with intervals."""
    if json_file is not None and (json_file.is_dir() or not json_file.parent.is_dir()):
        raise UserError(f"--json {json_file}: give a file in a folder that exists")
    spec = _eval_recipe(model, env, arg or [], max_tokens)
    from rich.console import Console

    from k2rl.eval_policy import evaluate as run
    from k2rl.eval_policy import table

    report = run(
        spec.model,
        spec.envs,
        n=n,
        k=k,
        samples=samples,
        temperature=temperature,
        seed=seed,
        split=split,
        quiet=False,
    )
    Console().print(table(report))
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


@app.command()
def measure(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the pass rates are written  [default: the recipe's envs.X.measured]")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Responses per task.")] = 8,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Measure how hard a recipe's training tasks are for its model, for pass_rate and order."""
    from k2rl.recipe import Recipe
    from k2rl.recipe_files import load

    loaded = load(Recipe, recipe, overrides or [])
    from k2rl import measure as measuring

    where = measuring.place(loaded, out)
    report = measuring.measure(loaded, where, samples=samples, force=force, quiet=as_json)
    if as_json:
        _print_json(report)
        return
    from rich.console import Console

    Console().print(measuring.table(report))
    if out is None:
        print(f"wrote {where}, which the recipe names")
        return
    mixed = [name for name, r in report["envs"].items() if r["between"]]
    if not mixed:
        print(f"wrote {where}; no task is sometimes right: try more --samples, larger budgets or other tasks")
        return
    print(f"wrote {where}; train on what is neither always right nor always wrong with")
    keys = [f"envs.{name}.measured={where} envs.{name}.pass_rate=[0.1,0.9]" for name in mixed]
    print(f"  k2rl train {recipe} {' '.join([*(overrides or []), *keys])}")


def _eval_recipe(model: str, ids: Sequence[str], args: Sequence[str], max_tokens: int | None) -> Recipe:
    """The model and envs of an evaluation as a recipe, so that both are checked as a recipe's are.

    An environment is called by its id, or by its class where the id is a path.
    """
    from k2rl.recipe import Recipe
    from k2rl.recipe_files import resolve

    if args and len(ids) > 1:
        raise UserError("--arg belongs to one environment: give a single --env with it")
    env_args = _arguments(args)
    envs: dict[str, Mapping[str, object]] = {}
    for env_id in ids:
        name = env_id.rpartition(":")[2].replace("/", "-").replace(".", "-")
        if name in envs:
            raise UserError(f"--env {env_id}: two environments are called {name!r}; evaluate them one by one")
        envs[name] = {
            "id": env_id,
            "args": env_args,
            "budget": {"tokens": max_tokens},
        }
    return resolve(Recipe, {"model": {"path": model}, "envs": envs}, source="k2rl eval")


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe.")] = None, as_json: JsonFlag = False
) -> None:
    """List the shipped recipes, or print one."""
    if name is not None:
        text = assets.recipe(name).read_text(encoding="utf-8")
        if as_json:
            _print_json({"name": Path(name).stem, "description": _first_comment(text), "text": text})
        else:
            print(text, end="")
        return
    rows = [
        {"name": stem, "description": _first_comment(path.read_text(encoding="utf-8")), "path": str(path)}
        for stem, path in assets.recipes().items()
    ]
    if as_json:
        _print_json(rows)
    else:
        _print_table(rows, ("name", "description"))


def _first_comment(text: str) -> str:
    comments = (line.lstrip("# ").rstrip() for line in text.splitlines() if line.startswith("#"))
    return next((c for c in comments if c), "")


@env_app.command("list")
def env_list(as_json: JsonFlag = False) -> None:
    """List the installed environments."""
    from k2rl.doctor import describe_envs

    rows = describe_envs()
    if as_json:
        _print_json(rows)
    else:
        _print_table(rows, ("name", "target", "summary", "distribution"))


@env_app.command("check")
def env_check(
    env: Annotated[str, typer.Argument(metavar="ID", help="name, module:Class or file.py:Class.")],
    arg: Annotated[
        list[str] | None, typer.Option(metavar="key=value", help="An argument of the env; may repeat.")
    ] = None,
    tasks: Annotated[int, typer.Option(min=1, help="Tasks to probe.")] = 24,
    seed: int = 0,
    model: Annotated[str, typer.Option(help="Whose tokens count: nano, a transformers folder, a hub id.")] = "nano",
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds after which a call is taken to hang.")] = 30.0,
    as_json: JsonFlag = False,
) -> None:
    """Probe an environment: gold passes, hacks fail, tasks are repeatable, the grader holds. Exit code 1 if not."""
    from k2rl.envcheck import check_env

    report = check_env(
        env, args=_arguments(arg or []), tasks=tasks, seed=seed, model=model, deadline_s=deadline, quiet=as_json
    )
    if as_json:
        _print_json(report.to_json())
    else:
        rows = [{"probe": f.probe, "result": f.result, "what": f.note or f.meaning} for f in report.findings]
        _print_table(rows, ("probe", "result", "what"))
        print(report.headline)
    if not report.ok:
        raise RunError(f"{env} fails {', '.join(report.failed)}")


@env_app.command("new")
def env_new(
    name: Annotated[str, typer.Argument(help="A Python identifier, such as word_chain.")],
    folder: Annotated[Path, typer.Option("--dir", help="Where to write the two files.")] = Path(),
) -> None:
    """Write a working environment and its test, to be changed into yours."""
    from k2rl.scaffold import new_env

    created = new_env(name, folder)
    for path in created.files:
        print(f"wrote {path}")
    print(f"test it:      {created.test_command}")
    print(f"train on it:  {created.train_command}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR…", help="One run, or several to compare.")],
    out: Annotated[
        Path | None, typer.Option(help="The page's file  [default: report.html in the first run's folder]")
    ] = None,
    rollouts: Annotated[bool, typer.Option("--rollouts", help="Show rollouts here instead of writing a page.")] = False,
    env: Annotated[str | None, typer.Option(help="Of this environment only.")] = None,
    iteration: Annotated[int | None, typer.Option(min=1, help="Of this iteration only.")] = None,
    verdict: Annotated[
        str | None, typer.Option(help="With this verdict only: correct, malformed, cut, ranked, …")
    ] = None,
    wrong: Annotated[bool, typer.Option("--wrong", help="Those that are not right only.")] = False,
    least: Annotated[float | None, typer.Option("--reward-min", help="With at least this reward.")] = None,
    most: Annotated[float | None, typer.Option("--reward-max", help="With at most this reward.")] = None,
    text: Annotated[str | None, typer.Option(help="That say this.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="So many at most, the last first.")] = 10,
    as_json: JsonFlag = False,
) -> None:
    """Show what a run did: one page of HTML that opens offline, or its rollouts in this terminal."""
    filters = {
        "--env": env,
        "--iteration": iteration,
        "--verdict": verdict,
        "--reward-min": least,
        "--reward-max": most,
    }
    given = [
        name for name, value in (filters | {"--text": text, "--wrong": wrong or None}).items() if value is not None
    ]
    if not rollouts:
        from k2rl.report import page

        if given or as_json:
            raise UserError(f"{(given or ['--json'])[0]} is for rollouts: add --rollouts")
        print(page.write(runs, out or runs[0] / "report.html"))
        return
    if len(runs) > 1 or out is not None or (wrong and verdict is not None):
        raise UserError("--rollouts shows one run, here: leave --out out, and one of --wrong and --verdict")
    from rich.console import Console

    from k2rl.report import browsing, terminal
    from k2rl.report.reading import RunFiles

    run = RunFiles.of(runs[0])
    if env is not None and env not in run.envs:
        raise UserError(f"--env {env}: this run has {', '.join(run.envs)}")
    wanted = terminal.Wanted(env, iteration, "wrong" if wrong else verdict, least, most, text)
    found = list(islice(terminal.found(run, wanted, browsing.decoder(run)), limit))
    if as_json:
        _print_json(found)
        return
    for rollout in found:
        terminal.print_rollout(Console(highlight=False, soft_wrap=True), rollout)
    print(f"{len(found)} rollouts" + (f"; more with --limit {2 * limit}" if len(found) == limit else ""))


@sandbox_app.command("serve")
def sandbox_serve(
    host: Annotated[str, typer.Option(help="Other than this machine's own needs K2RL_SANDBOX_TOKEN.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    workers: Annotated[int | None, typer.Option(min=1, help="Programs at a time  [default: the cores]")] = None,
) -> None:
    """Serve this machine's jails by HTTP, for args.sandbox=http://host:port elsewhere."""
    import signal

    from k2rl.sandbox.local import LocalSandbox
    from k2rl.sandbox.server import make_server

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # how services are ended
    sandbox = LocalSandbox(workers=workers)
    try:
        server = make_server(sandbox, host, port, os.environ.get("K2RL_SANDBOX_TOKEN"))
        place = f"http://{host}:{server.server_address[1]}"
        print(f"level {sandbox.level}, {sandbox.workers} programs at a time, at {place}; Ctrl-C ends it", flush=True)
        with server:
            server.serve_forever()
    finally:
        sandbox.close()


@app.command()
def doctor(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="Would this recipe run here? Checked before it starts.")
    ] = None,
    overrides: Overrides = None,
    as_json: JsonFlag = False,
) -> None:
    """Check this installation, or whether a recipe would run on it; exit code 1 if something required is broken."""
    from k2rl import doctor

    if recipe is None:
        rows = [check.to_json() for check in doctor.examine()]
        if as_json:
            _print_json(rows)
        else:
            _print_table(rows, ("status", "what", "found", "fix"))
    else:
        rows = _preflight(recipe, overrides or [], as_json)
    broken = [str(row["what"]) for row in rows if row["status"] == "broken"]
    if broken:
        raise RunError(f"broken: {', '.join(broken)}")


def _preflight(name: str, overrides: Sequence[str], as_json: bool) -> list[dict[str, object]]:
    """Print the checks of a recipe, and of the packages those that fail."""
    from k2rl import doctor, preflight
    from k2rl.recipe import Recipe
    from k2rl.recipe_files import load

    recipe = load(Recipe, name, overrides)
    checks, estimate = preflight.examine(recipe, Path("runs"))
    rows = [check.to_json() for check in [*(c for c in doctor.packages() if c.status == "broken"), *checks]]
    if as_json:
        _print_json({"checks": rows, "memory": estimate.to_json() if estimate else None})
        return rows
    _print_table(rows, ("status", "what", "found", "fix"))
    if estimate:
        _print_table(list(preflight.breakdown(estimate)), ("what", "GiB"))
    return rows
