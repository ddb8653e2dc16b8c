"""The critic's part of an iteration, with a judge that is told what to say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
from two_turn_env import Haiku

from k2rl import rng
from k2rl.chat import Chat
from k2rl.critic import pairs
from k2rl.critic.critic import Critic
from k2rl.critic.judge import Judge
from k2rl.critic.prompt import JudgePrompt
from k2rl.critic.tournament import Config as TournamentConfig
from k2rl.errors import RunError, UserError
from k2rl.losses.k2 import K2
from k2rl.plugins import make_env
from k2rl.protocols import Request
from k2rl.recipe import CriticConfig, EnvSpec
from k2rl.samplers.scripted import ScriptedSampler
from k2rl.scoring import score
from k2rl.types import End, Group, Rollout, Segment, Status, Task, Verdict

ENVS = {
    "math": make_env("math", {"level": 2, "instruction": ""}),
    "writing": make_env("k2rl_envs.writing_env:WritingEnv", {"words": [1, 2]}),
}
POOLS = {name: [replace(t, env=name) for t in islice(env.tasks("train", 0), 40)] for name, env in ENVS.items()}
SPECS = {"math": EnvSpec("math"), "writing": EnvSpec("writing")}


def silent(request: Request, index: int) -> Sequence[int]:
    raise AssertionError("labels need no sampling")


def critic(tokenizer: Any, read: Any = None, **config: Any) -> Critic:
    """One whose judge reads (first response, second response) -> log-odds that the first is better."""
    chat = Chat(tokenizer)

    def labels(ids: Sequence[int], label_ids: Sequence[int]) -> Sequence[float]:
        turns = tokenizer.decode(list(ids)).split("<|assistant|>")[1:]
        odds = (read or longer)(*(t.split("<|end|>")[0] for t in turns))
        return (odds / 2, -odds / 2)

    judge = Judge(JudgePrompt(chat), ScriptedSampler(silent, label_logprobs=labels))
    return Critic(CriticConfig(enabled=True, **config), ENVS, POOLS, judge, None, seed=0)


def longer(first: str, second: str) -> float:
    return float(len(first) - len(second))


def said(task: Task, texts: Sequence[str], *, end: End = End.STOP) -> Group:
    def rollout(k: int, text: str) -> Rollout:
        verdict = ENVS[task.env].verify(task, text)  # type: ignore[attr-defined]
        segment = Segment("policy", (5,) * len(text), (-1.0,) * len(text))
        return Rollout(task, k, (1,), (segment,), end, (verdict,), (text,))

    return Group(task, tuple(rollout(k, text) for k, text in enumerate(texts)))


def written(n: int) -> Group:
    task = POOLS["writing"][n]
    gold = str(ENVS["writing"].gold(task))
    return said(task, [gold, gold + " And more.", "The fox.", "Why so?"])


def solved(n: int) -> Group:
    task = POOLS["math"][n]
    answer = int(str(task.answer))
    return said(task, [f"#### {answer}", f"so #### {answer}", f"#### {answer + 1}", f"#### {answer + 7}"])


def test_pending_verdicts_become_scores_of_the_tournament(tiny_tokenizer: Any) -> None:
    open_group, closed_group = written(0), solved(0)
    ranked = critic(tiny_tokenizer).rank([open_group, closed_group], 1)
    decided, verified = ranked.groups
    assert verified is closed_group
    scores = {len(r.text[0]): r.verdict.score for r in decided.rollouts if r.verdict and r.verdict.score is not None}
    assert [scores[n] for n in sorted(scores)] == sorted(scores.values())
    assert [r.verdict.status for r in decided.rollouts if r.verdict] == [Status.RANKED] * 4
    assert all(r.verdicts[0].status is Status.PENDING for r in decided.rollouts)
    (critique,) = ranked.critiques
    assert len(critique.matches) == 6
    told = json.loads(json.dumps(critique.to_json()))
    assert told["task_id"] == open_group.task.id
    assert told["criteria"] == ["words", "tone", "form"]
    assert {m["a"] for m in told["matches"]} <= {0, 1, 2, 3}
    assert ranked.metrics["critic/comparisons"] == 6


def test_a_cut_or_wordless_response_is_not_compared(tiny_tokenizer: Any) -> None:
    task = POOLS["writing"][0]
    good, none = said(task, ["The fox sang.", "A fox."]), said(task, ["...", "?!"])
    cut = said(task, ["The fox sang and"], end=End.BUDGET)
    rollouts = [*good.rollouts, *none.rollouts, *cut.rollouts]
    group = Group(task, tuple(replace(r, k=k) for k, r in enumerate(rollouts)))
    (decided,) = critic(tiny_tokenizer).rank([group], 1).groups
    statuses = [r.verdict.status for r in decided.rollouts if r.verdict]
    assert statuses == [Status.RANKED] * 2 + [Status.MALFORMED] * 2 + [Status.PENDING]
    scored = score([decided], SPECS, K2(), 0.2, weights={"writing": 1.0})
    assert [round(x, 2) for x in scored.groups[0].rewards[2:]] == [0.0, 0.0, -0.5]


def test_no_verdict_is_no_reward(tiny_tokenizer: Any) -> None:
    mute = critic(tiny_tokenizer)
    mute.judge.context = 5
    ranked = mute.rank([written(0)], 1)
    assert [r.verdict.status for r in ranked.groups[0].rollouts if r.verdict] == [Status.VERIFIER_ERROR] * 4
    assert ranked.metrics["critic/unreadable"] == ranked.metrics["critic/judgements"] > 0
    with pytest.raises(RunError, match="have no verdict: 8 verifier_error"):
        score(mute.rank([written(0), written(1)], 2).groups, SPECS, K2(), 0.2)


def test_the_gate_weighs_advantages_after_the_objective(tiny_tokenizer: Any) -> None:
    ranked = critic(tiny_tokenizer).rank([written(0), solved(0)], 1)
    assert ranked.weights == {"writing": 0.0}, "too few pairs yet"
    shut = score(ranked.groups, SPECS, K2(), 0.2, weights=ranked.weights)
    assert [g.task.env for g in shut.groups] == ["math"]
    whole = score(ranked.groups, SPECS, K2(), 0.2, weights={"writing": 1.0}).groups[0]
    half = score(ranked.groups, SPECS, K2(), 0.2, weights={"writing": 0.5}).groups[0]
    assert half.weight == 0.5
    assert half.rewards == whole.rewards
    assert half.advantages == pytest.approx([a / 2 for a in whole.advantages])
    assert "success/writing" not in shut.metrics
    cut = said(POOLS["writing"][0], ["The fox sang and", "A fox"], end=End.BUDGET)
    ranked = critic(tiny_tokenizer).rank([cut], 1)
    nothing = score(ranked.groups, SPECS, K2(), 0.2, weights=ranked.weights)
    assert "success/writing" not in nothing.metrics, "nobody was ranked, and still none is right or wrong"
    assert "reward/writing" in shut.metrics


def test_a_judge_that_knows_corruptions_is_let_in_and_a_coin_is_not(tiny_tokenizer: Any) -> None:
    """A judge that likes what the demonstrations say, one that draws lots, and one that likes what is longer."""
    env = ENVS["writing"]
    told = {t.id: [str(env.gold(t)), str(env.sample_gold(t, rng.generator(t.id)))] for t in POOLS["writing"]}
    known = {text for texts in told.values() for text in texts}

    def knowing(first: str, second: str) -> float:
        return 3.0 * ((first in known) - (second in known))

    def lots(first: str, second: str) -> float:
        return 1.0 if rng.key(first, second) % 2 else -1.0

    weight = {}
    for name, read in {"knowing": knowing, "lots": lots, "longer": longer}.items():
        one = critic(tiny_tokenizer, read)
        for iteration in range(1, 8):
            tasks = POOLS["writing"][4 * iteration : 4 * iteration + 4]
            ranked = one.rank([said(task, told[task.id]) for task in tasks], iteration)
            weight[name] = ranked.weights["writing"]
            assert ranked.metrics["critic/pairs/writing/apart"] == ranked.metrics["critic/pairs/writing/degradation"]
    assert weight == {"knowing": 1.0, "lots": 0.0, "longer": 0.0}
    assert critic(tiny_tokenizer, lots, gate=False).rank([written(0)], 1).weights == {"writing": 1.0}


def test_what_the_judge_learns_is_measured_before_and_balanced(tiny_tokenizer: Any) -> None:
    one = critic(tiny_tokenizer, pairs=8, batch=8, replay=0.25)
    ranked = one.rank([solved(n) for n in range(6)], 1)
    assert ranked.metrics["critic/pairs/math/verified"] == 8
    batch = one.texts(1, 0)
    assert batch is not None
    assert len(batch.tokens_B_L) == 16, "8 pairs in both orders"
    labels = [int(row[int(n) - 1]) for row, n in zip(batch.tokens_B_L, batch.lengths_B, strict=True)]
    assert sorted(labels) == sorted([*one.judge.prompt.labels] * 8)
    shared = [tuple(row[: int(n)].tolist()) for row, n in zip(batch.tokens_B_L, batch.prompt_lengths_B, strict=True)]
    assert len(set(shared)) == len(set(batch.prompts_B.tolist()))


def test_held_out_environments_measure_the_judge_and_teach_it_nothing(tiny_tokenizer: Any) -> None:
    judging = critic(tiny_tokenizer, held_out=["math"], replay=0.0)
    for iteration in (1, 2):
        ranked = judging.rank([solved(0), written(0)], iteration)
        assert ranked.metrics["critic/fresh_pairs"] == 2, "fresh for good"
        assert ranked.metrics["critic/pairs/math/verified"] == 2 * iteration
        assert judging.texts(iteration, 0) is None


def test_what_sft_taught_is_remembered_where_no_verified_pairs_teach(tiny_tokenizer: Any) -> None:
    assert set(critic(tiny_tokenizer).pools) == {"writing"}
    held = critic(tiny_tokenizer, held_out=["math"], replay=0.5, batch=8)
    remembered = held._remembered(8, 1, 0)
    assert [pair.env for pair in remembered] == ["math", "writing"] * 4


def test_random_labels_stay_with_their_pair(tiny_tokenizer: Any) -> None:
    true, tossed = (critic(tiny_tokenizer, labels=labels, replay=0.0) for labels in ("verified", "random"))
    for one in (true, tossed):
        one.rank([solved(n) for n in range(20)], 1)
    a, b, again = true.texts(1, 0), tossed.texts(1, 0), tossed.texts(2, 0)
    assert a is not None
    assert b is not None
    assert again is not None

    def verdicts(batch: Any) -> dict[tuple[int, ...], int]:
        rows = zip(batch.tokens_B_L.tolist(), batch.lengths_B.tolist(), strict=True)
        return {tuple(row[: n - 1]): row[n - 1] for row, n in rows}

    same = [verdicts(a)[prompt] == label for prompt, label in verdicts(b).items() if prompt in verdicts(a)]
    assert 0.2 < sum(same) / len(same) < 0.8
    both = verdicts(b).keys() & verdicts(again).keys()
    assert both
    assert all(verdicts(b)[prompt] == verdicts(again)[prompt] for prompt in both)


def test_its_state_survives_json(tiny_tokenizer: Any) -> None:
    one, again = critic(tiny_tokenizer), critic(tiny_tokenizer)
    for iteration in (1, 2):
        one.rank([written(iteration), solved(iteration)], iteration)
    again.restore(json.loads(json.dumps(one.state())))
    groups = [written(3), solved(3)]
    a, b = one.rank(groups, 3), again.rank(groups, 3)
    assert dict(a.metrics) == dict(b.metrics)
    batch, same = one.texts(3, 0), again.texts(3, 0)
    assert batch is not None
    assert same is not None
    assert batch.tokens_B_L.equal(same.tokens_B_L)


@pytest.mark.parametrize("config", [TournamentConfig("swiss", rounds=2), TournamentConfig("anchored")])
def test_other_tournaments(tiny_tokenizer: Any, config: TournamentConfig) -> None:
    ranked = critic(tiny_tokenizer, tournament=config).rank([written(0), written(1)], 1)
    assert len(ranked.critiques) == 2
    assert ranked.metrics["critic/comparisons"] == {"swiss": 8, "anchored": 6}[config.kind]


def test_a_pending_verdict_without_critic_is_said() -> None:
    with pytest.raises(RunError, match=r"critic\.enabled=true"):
        score([written(0)], SPECS, K2(), 0.2)


def test_verdicts_that_rank() -> None:
    assert Verdict.ranked(0.4).scored
    with pytest.raises(ValueError, match="needs a score"):
        Verdict(Status.RANKED)


def test_what_corrupt_returns_is_checked_and_a_copy_is_no_pair() -> None:
    task, draw = POOLS["writing"][0], (0, 1)
    for wrong in (None, ["The fox."], {"x": 5}, {5: "The fox."}):
        with pytest.raises(UserError, match="must return a mapping from names to texts"):
            pairs.corrupted(Haiku(corrupted=wrong), task, "A fox.", (), *draw)
    made = pairs.corrupted(Haiku(corrupted={"same": "A fox.", "other": "A dog."}), task, "A fox.", (), *draw)
    assert [(pair.kind, pair.worse) for pair in made] == [("other", "A dog.")]


def test_why_a_gate_is_closed_is_told(tiny_tokenizer: Any) -> None:
    assert critic(tiny_tokenizer).rank([written(0)], 1).closed == {"writing": "too_few_pairs"}
    assert critic(tiny_tokenizer, gate=False).rank([written(0)], 1).closed == {}


def test_a_verdict_pending_where_nothing_is_open_ended_has_no_reward(
    tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no gate for it."""
    own = critic(tiny_tokenizer)
    monkeypatch.setattr(type(ENVS["writing"]), "open_ended", False)
    ranked = own.rank([written(0)], 1)
    assert ranked.critiques == ()
    with pytest.raises(RunError, match="open_ended in the environment's class"):
        score(ranked.groups, SPECS, K2(), 0.2)
