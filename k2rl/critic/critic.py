"""The critic's part of an iteration: rank the open-ended groups, measure how far that can be trusted, learn on.

    ranked = critic.rank(groups, iteration)     # the judge measured, on pairs it was not trained on; tournaments
    critic.joint(iteration, updates)            # what it learns within the policy's updates, or
    critic.step(iteration, progress)            # in updates of its own after them

The judge is the policy itself, or a copy of the weights it began with, by `critic.weights`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from k2rl import rng, rubrics
from k2rl.batch import TextBatch, text_batch
from k2rl.critic import pairs
from k2rl.critic.judge import Judge, resolved, rubrics_of
from k2rl.critic.metrics import tempered
from k2rl.critic.prompt import Comparison
from k2rl.critic.recalibrate import Window, verified_pairs
from k2rl.critic.records import JudgedPair, Judgement, Pair
from k2rl.critic.tournament import Outcome, Tournament
from k2rl.critic.trust import METRICS, RULES, Trust
from k2rl.env import Env
from k2rl.recipe import CriticConfig
from k2rl.trainers.text_trainer import TextTrainer
from k2rl.types import Group, Rollout, Status, Task, Verdict, content_hash, mean

_TRIES = 4
"""Tasks looked at for each corruption of a gold response: not every task has one."""


@dataclass(frozen=True)
class Critique:
    """A tournament as it was held: the responses by their place k in the group, who met whom (both orders), the
    resulting scores, and what became of it."""

    group: Group
    criteria: tuple[str, ...]
    matches: tuple[tuple[int, int, Judgement | None], ...]
    scores: Mapping[int, float | None]
    outcome: Outcome

    def to_json(self) -> dict[str, Any]:
        return {
            "task_id": self.group.task.id,
            "env": self.group.task.env,
            "criteria": self.criteria,
            "matches": [
                {"a": a, "b": b, "a_first": j and j.a_first, "b_first": j and j.b_first} for a, b, j in self.matches
            ],
            "scores": {str(k): score for k, score in self.scores.items()},
        }


@dataclass
class _Held:
    """A tournament under way."""

    group: Group
    tournament: Tournament
    places: list[int]
    texts: list[str]
    criteria: tuple[str, ...]
    matches: list[tuple[int, int, Judgement | None]] = field(default_factory=list)

    def comparison(self, a: int, b: int) -> Comparison:
        return Comparison(self.group.task.messages, self.criteria, self.texts[a], self.texts[b])

    def critique(self) -> Critique:
        outcome = self.tournament.outcome()
        scores = dict(zip(self.places, outcome.scores, strict=True))
        if len(self.places) == 1:
            scores = {self.places[0]: 0.5}  # Nobody to compare it with, which is no failure.
        return Critique(self.group, self.criteria, tuple(self.matches), scores, outcome)


@dataclass(frozen=True)
class Ranked:
    """Groups whose pending verdicts are decided, the weight of each open-ended environment's advantages, why it is 0
    where it is, what there is to tell, and what the judge was measured by."""

    groups: tuple[Group, ...]
    weights: Mapping[str, float] = field(default_factory=dict)
    closed: Mapping[str, str] = field(default_factory=dict)
    critiques: tuple[Critique, ...] = ()
    alarms: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    measured: tuple[JudgedPair, ...] = ()


class Critic:
    """See the module.

    Args:
        envs: the run's environments by name.
        pools: their training tasks: what gold responses and their corruptions are made of.
        judge: who compares.
        learner: what updates the judge; None for a frozen one, and where the policy's own updates carry its texts.
        reference: the judge as it was at the start, to compare with on the same pairs.
    """

    def __init__(
        self,
        config: CriticConfig,
        envs: Mapping[str, Env],
        pools: Mapping[str, Sequence[Task]],
        judge: Judge,
        learner: TextTrainer | None,
        seed: int,
        reference: Judge | None = None,
    ) -> None:
        self.reference = reference
        self.config, self.envs, self.judge, self.learner, self.seed = config, envs, judge, learner, seed
        for env in envs.values():
            resolved(rubrics_of(env, more=config.rubrics))  # What is wrong with them shows before anything runs.
        self._trained: set[str] = set()
        """Hashes of the verified pairs it has had in its window."""
        spoilt = {name: tasks for name, tasks in pools.items() if type(envs[name]).corrupt is not Env.corrupt}
        # No verified pairs keep there what SFT taught.
        alone = {name for name, env in envs.items() if env.open_ended} | set(config.held_out)
        self.pools = {name: tasks for name, tasks in spoilt.items() if name in alone} or spoilt
        self.trust = Trust(config.trust, seed)
        self.window = Window(config.window)

    # --- before training ---------------------------------------------------------------------------------

    def rank(self, groups: Sequence[Group], iteration: int) -> Ranked:
        """Decide what is pending, after measuring the judge on pairs it has not been trained on."""
        asked, unreadable = self.judge.asked, self.judge.unreadable
        words = {name: self._words(None, name, iteration) for name in self.envs}
        found = verified_pairs(groups, words, self.config.pairs, self.seed, iteration)
        fresh = {hashed: p for p in found if (hashed := _hash(p)) not in self._trained}
        degraded = [pair for group in groups for pair in self._degraded(group, iteration)]
        measured = self._measure([*fresh.values(), *degraded], iteration)
        learned = [pair for pair in found if pair.env not in self.config.held_out]
        self.window.add(iteration, learned)
        self._trained |= {_hash(pair) for pair in learned}
        gates = self.trust.gates(iteration, [n for n, env in self.envs.items() if env.open_ended])
        alarms = tuple(gate.alarm for gate in gates.values() if gate.alarm and self.config.gate)
        # What is pending in another environment has no gate, and is no verdict for scoring either.
        waiting = [g for g in groups if self.envs[g.task.env].open_ended and any(map(_pending, g.rollouts))]
        critiques = self._tournaments(waiting, iteration)
        by_group = {id(c.group): c for c in critiques}
        decided = [_with_scores(g, by_group[id(g)].scores) if id(g) in by_group else g for g in groups]
        weights = {name: gate.weight if self.config.gate else 1.0 for name, gate in gates.items()}
        metrics = _figures(self.trust.report()) | {
            "critic/judgements": float(self.judge.asked - asked),
            "critic/unreadable": float(self.judge.unreadable - unreadable),
            "critic/fresh_pairs": float(len(fresh)),
            "critic/alarms": float(len(alarms)),
            "critic/comparisons": float(sum(c.outcome.asked for c in critiques)),
            "critic/missing": float(sum(c.outcome.missing for c in critiques)),
            "critic/intransitive": mean([x for c in critiques if (x := c.outcome.intransitive) is not None]),
            "critic/weight": mean([gate.weight for gate in gates.values()]),
            **{f"critic/weight/{name}": gate.weight for name, gate in gates.items()},
            **{f"critic/temperature/{name}": self._heat(name) for name in gates},
            **{f"critic/bound/{name}": gate.bound for name, gate in gates.items() if gate.bound is not None},
            **{f"critic/baseline/{name}": gate.baseline for name, gate in gates.items() if gate.baseline is not None},
        }
        closed = {name: gates[name].reason for name, weight in weights.items() if not weight}
        return Ranked(tuple(decided), weights, closed, tuple(critiques), alarms, metrics, measured)

    def _measure(self, fresh: Sequence[Pair], iteration: int) -> tuple[JudgedPair, ...]:
        asked = [pairs.comparison(p, better_first=True) for p in fresh]
        judged, before = self.judge.judge(asked), list[Judgement | None]([None] * len(asked))
        if self.reference is not None:
            before = self.reference.judge(asked)
        known = tuple(JudgedPair(p, j, b) for p, j, b in zip(fresh, judged, before, strict=True) if j is not None)
        self.trust.add(iteration, known, [self._formed(judged.pair) for judged in known])
        return known

    def _formed(self, pair: Pair) -> tuple[bool, bool] | None:
        """Whether the better and the worse response have the form of a response at all."""
        better, worse = (self.envs[pair.env].well_formed(text) for text in (pair.better, pair.worse))
        return None if better is None or worse is None else (better, worse)

    def _heat(self, env: str) -> float:
        """What the log-odds of verdicts are divided by. Without a gate nothing is taken from known labels."""
        return self.trust.temperature(env) if self.config.gate else 1.0

    def _degraded(self, group: Group, iteration: int) -> list[Pair]:
        """Own responses, each against a corruption of it, and another one against the same."""
        env = self.envs[group.task.env]
        if not env.open_ended:
            return []
        words = self._words(group.task, group.task.env, iteration)
        texts, found = list(dict.fromkeys(_text(r) for r in group.rollouts if _pending(r))), list[Pair]()
        for k, text in enumerate(texts):
            made = pairs.corrupted(env, group.task, text, words, "own", self.seed, iteration, k)
            if made and len(found) < 2 * self.config.degradations:
                found.append(made[0])
                if len(texts) > 1:
                    found.append(replace(made[0], better=texts[k - 1], apart=True))
        return found

    def _tournaments(self, groups: Sequence[Group], iteration: int) -> list[Critique]:
        """All groups' tournaments side by side: what they ask in a round is judged at once."""
        held = [self._tournament(group, iteration) for group in groups]
        while asked := [(t, pair) for t in held for pair in t.tournament.asks()]:
            found: dict[int, list[Judgement | None]] = {id(t): [] for t, _ in asked}
            for name in dict.fromkeys(t.group.task.env for t, _ in asked):
                own = [(t, pair) for t, pair in asked if t.group.task.env == name]
                heat = self._heat(name)
                answers = self.judge.judge([t.comparison(a, b) for t, (a, b) in own])
                for (t, (a, b)), raw in zip(own, answers, strict=True):
                    judgement = raw and tempered(raw, heat)
                    found[id(t)].append(judgement)
                    t.matches.append((t.places[a], t.places[b], judgement))
            for t in held:
                if id(t) in found:
                    t.tournament.take(found[id(t)])
        return [t.critique() for t in held]

    def _tournament(self, group: Group, iteration: int) -> _Held:
        pending = [r for r in group.rollouts if _pending(r)]
        lengths = [r.policy_tokens for r in pending]
        config = self.config.tournament
        tournament = Tournament(
            len(pending),
            replace(config, anchor=min(config.anchor, len(pending) - 1)),
            names=[rng.key(self.seed, iteration, group.task.id, r.k) for r in pending],
            lengths=lengths,
            reference=median(lengths),
        )
        places, texts = [r.k for r in pending], [_text(r) for r in pending]
        return _Held(group, tournament, places, texts, self._words(group.task, group.task.env, iteration))

    # --- criteria ----------------------------------------------------------------------------------------

    def _words(self, task: Task | None, env: str, iteration: int) -> tuple[str, ...]:
        """What a task (None: whatever the environment's tasks don't say themselves) is judged by, in a phrasing drawn
        anew."""
        names = rubrics_of(self.envs[env], task, self.config.rubrics)
        key = (self.seed, iteration, task.id if task else env)
        return rubrics.criteria(resolved(names), *key, short=self.judge.prompt.short)

    # --- training ----------------------------------------------------------------------------------------

    def texts(self, iteration: int, update: int) -> TextBatch | None:
        """What the judge learns in one update: pairs of the window, and corruptions of gold responses; each in both
        orders. None where there is nothing to learn from."""
        config = self.config
        key = (self.seed, iteration, update)
        remembered = round(config.replay * config.batch) if self.pools else 0
        chosen = [*self.window.draw(config.batch - remembered, *key), *self._remembered(remembered, iteration, update)]
        if config.labels == "random":
            chosen = [_tossed(pair, *key) for pair in chosen]
        prompt = self.judge.prompt
        examples = pairs.both_orders(prompt, chosen, config.label, config.text)
        fitting = [e for e in examples if not self.judge.context or len(e.ids) <= self.judge.context]
        return text_batch(fitting, config.coefficient, prompt.chat.pad_id) if fitting else None

    def _remembered(self, count: int, iteration: int, update: int) -> list[Pair]:
        """What SFT taught, environments in turn: gold responses against their corruptions."""
        key = (self.seed, iteration, update)
        draw, names = rng.generator("remembered", *key), sorted(self.pools)
        found = list[Pair]()

        def words(task: Task) -> tuple[str, ...]:
            return self._words(task, task.env, iteration)

        for n in range(_TRIES * count):
            pool = self.pools[names[n % len(names)]]
            task = pool[int(draw.integers(len(pool)))]
            made = pairs.of_gold(self.envs, {task.env: [task]}, words, *key)
            found += [own[int(draw.integers(len(own)))] for own in made]
            if len(found) == count:
                break
        return found

    def step(self, iteration: int, progress: float) -> dict[str, float]:
        """The critic's own updates, at `progress` in [0, 1] of the run."""
        if self.learner is None:
            return {}
        lr = self.config.optim.lr.at(progress)
        stats: dict[str, float] = {}
        for update in range(self.config.steps):
            batch = self.texts(iteration, update)
            if batch is not None:
                stats = self.learner.step(batch, lr=lr)
        return {f"critic/{key}": value for key, value in stats.items()}

    def joint(self, iteration: int, updates: int) -> list[TextBatch | None]:
        """What goes into the policy's own updates."""
        if self.config.recalibrate != "joint":
            return []
        return [self.texts(iteration, update) for update in range(updates)]

    def close(self) -> None:
        if self.learner is not None:
            self.learner.close()
        if self.config.weights == "copy":
            self.judge.sampler.close()
        if self.reference is not None:
            self.reference.sampler.close()

    # --- for checkpoints ---------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        return {"trust": self.trust.state(), "window": self.window.state(), "trained": sorted(self._trained)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.trust.restore(state["trust"])
        self.window.restore(state["window"])
        self._trained = set(state["trained"])


def _figures(report: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Trust's report as metrics: `critic/<figure>/<env>/<source>`, and the accuracy of all verified pairs."""
    names = ("pairs", *METRICS, "gain", "length_slope", *RULES)
    found = {
        f"critic/{name}/{source}": float(own[name])
        for source, own in report.items()
        for name in names
        if own[name] is not None
    }
    for source, own in report.items():
        if own["ci95"] is not None:
            found[f"critic/accuracy_low/{source}"], found[f"critic/accuracy_high/{source}"] = own["ci95"]
    found |= {
        f"critic/accuracy/{source}/{kind}": accuracy
        for source, own in report.items()
        for kind, accuracy in own["by_kind"].items()
        if kind != "verified"
    }
    verified = [own for source, own in report.items() if source.endswith("/verified")]
    pairs = sum(own["pairs"] for own in verified)
    if pairs:
        for name in ("accuracy", "gain"):
            if all(own[name] is not None for own in verified):
                found[f"critic/{name}"] = sum(own["pairs"] * own[name] for own in verified) / pairs
    return found


def _hash(pair: Pair) -> str:
    return content_hash(pair.task, pair.better, pair.worse)


def _pending(rollout: Rollout) -> bool:
    return not rollout.cut and rollout.verdict is not None and rollout.verdict.status is Status.PENDING


def _text(rollout: Rollout) -> str:
    return "\n\n".join(rollout.text)


def _with_scores(group: Group, scores: Mapping[int, float | None]) -> Group:
    """The group with the tournament's scores as verdicts; a response that no verdict was reached on has none."""

    def decided(rollout: Rollout) -> Rollout:
        if rollout.k not in scores:
            return rollout
        score = scores[rollout.k]
        verdict = (
            Verdict.failure(Status.VERIFIER_ERROR, "the judge reached no verdict on any comparison of this response")
            if score is None
            else Verdict.ranked(score, f"wins {100 * score:.0f} % of its comparisons")
        )
        return replace(rollout, verdicts=(*rollout.verdicts, verdict))

    return Group(group.task, tuple(decided(r) for r in group.rollouts))


def _tossed(pair: Pair, *key: str | int) -> Pair:
    """The pair with a label by chance: the control that shows what the labels are worth."""
    if rng.key("toss", pair.env, pair.task, pair.kind, pair.better, *key[:1]) % 2:
        return replace(pair, better=pair.worse, worse=pair.better)
    return pair
