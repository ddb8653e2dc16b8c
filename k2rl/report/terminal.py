"""Rollouts in a terminal, for machines that are reached by ssh: found by filters, printed as text whatever they say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from k2rl.report.browsing import Decode, group_rows, shown_group
from k2rl.report.reading import RunFiles
from k2rl.terminal import shown, shown_lines

_COLOURS = {"correct": "green", "wrong": "red", "malformed": "red"}
_UNSURE = ((-0.5, ""), (-2.0, "yellow"), (float("-inf"), "red"))
"""Log-probs down to which a token has which colour."""


@dataclass(frozen=True)
class Wanted:
    """Which rollouts to show; None: all. `status` is as `status_of` names it, or `wrong` for all that are not right."""

    env: str | None = None
    iteration: int | None = None
    status: str | None = None
    least: float | None = None
    most: float | None = None
    text: str | None = None

    def takes(self, rollout: dict[str, Any]) -> bool:
        reward, status = rollout["reward"], rollout["status"]
        return (
            (self.status is None or status.startswith(self.status) or (self.status == "wrong" and _not_right(status)))
            and (self.least is None or (reward is not None and reward >= self.least))
            and (self.most is None or (reward is not None and reward <= self.most))
            and (self.text is None or self.text.lower() in said(rollout).lower())
        )


def found(run: RunFiles, wanted: Wanted, decode: Decode | None = None) -> Iterator[dict[str, Any]]:
    """Rollouts of a run, the last iterations first, each with its prompt and its group's critique."""
    for iteration in sorted(run.iterations if wanted.iteration is None else [wanted.iteration], reverse=True):
        for env, groups in sorted(group_rows(run, iteration).items()):
            for group in groups if wanted.env in (None, env) else ():
                shown = shown_group(group, decode)
                about = {key: shown[key] for key in ("iteration", "env", "task", "prompt", "critique")}
                yield from ({**about, **rollout} for rollout in shown["rollouts"] if wanted.takes(rollout))


def said(rollout: dict[str, Any]) -> str:
    """What the policy said, all turns."""
    own = (turn for turn in rollout["turns"] if turn["source"] == "policy")
    return "\n".join(
        "".join(piece for piece, _ in turn["pieces"]) if "pieces" in turn else str(turn["text"]) for turn in own
    )


def print_rollout(console: Console, rollout: dict[str, Any]) -> None:
    head = Text(
        f"iteration {rollout['iteration']}  {shown(rollout['env'])}  task {rollout['task'][:12]}  k {rollout['k']}  "
    )
    head.append(rollout["status"], _COLOURS.get(rollout["status"], "yellow"))
    for name in ("score", "reward", "advantage"):
        if rollout[name] is not None:
            head.append(f"  {name} {rollout[name]:g}")
    head.append(f"  {rollout['tokens']} tokens" + (f" of {rollout['budget']}" if rollout["budget"] else ""))
    console.rule(style="dim")
    console.print(head)
    if rollout["detail"]:
        console.print(Text(f"  {shown_lines(rollout['detail'])}", style="dim"))
    for message in rollout["prompt"]:
        console.print(
            Text(f"{shown_lines(message['role'])}> ", style="bold").append(shown_lines(message["content"]), "not bold")
        )
    for turn in rollout["turns"]:
        line = Text("policy> " if turn["source"] == "policy" else "environment> ", style="bold")
        for piece, logprob in turn.get("pieces", ()):
            line.append(shown_lines(piece), f"not bold {next(c for bound, c in _UNSURE if logprob >= bound)}".strip())
        console.print(line.append(shown_lines(turn.get("text", "")), "not bold"))
    if rollout["critique"]:
        own = [m for m in rollout["critique"]["matches"] if rollout["k"] in m[:2]]
        console.print(Text(f"judged by {shown_lines(', '.join(rollout['critique']['criteria']))}", style="dim"))
        for a, b, first, second in own:
            told = "no verdict" if first is None or second is None else f"{first:.2f}, the other way round {second:.2f}"
            console.print(Text(f"  {a} against {b}: P({a} is better) {told}", style="dim"))


def _not_right(status: str) -> bool:
    return status in ("wrong", "malformed") or status.startswith("cut")
