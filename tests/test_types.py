"""The records: what they refuse, their ids, and their JSON."""

from __future__ import annotations

import json
import math

import pytest

from k2rl.types import End, Rollout, Segment, Status, Task, Verdict, content_hash, mean


def test_a_task_is_known_by_env_prompt_and_reference() -> None:
    task = Task("2+2", answer="4", reference={"a": 1, "b": 2}, env="m")
    assert task.id == Task("2+2", answer="four", reference={"b": 2, "a": 1}, budget=9, env="m").id
    others = [Task("2+3", env="m"), Task("2+2", env="n"), Task("2+2", reference={"a": 2}, env="m")]
    assert len({task.id, *(other.id for other in others)}) == 4


def test_ids_are_stable_across_processes_and_versions() -> None:
    assert Task("2+2", env="m").id == content_hash("m", "2+2", {})
    assert content_hash("m", "2+2", {}) == "a535ba6dd91887b6"


def test_text_that_is_not_valid_unicode_has_an_id() -> None:
    assert Task("\ud800").id != Task("\ud801").id


def test_a_string_prompt_is_one_user_message() -> None:
    assert Task("hi").messages == ({"role": "user", "content": "hi"},)
    messages = ({"role": "system", "content": "a"}, {"role": "user", "content": "b"})
    assert Task(messages).messages == messages


@pytest.mark.parametrize("prompt", ["hi", ({"role": "user", "content": "hi"},)])
def test_a_task_survives_json(prompt: str) -> None:
    task = Task(prompt, "a", {"x": [1]}, budget=3, rubrics=("r",), tags=("t",), env="e")
    again = Task.from_json(json.loads(json.dumps(task.to_json())))
    assert again == task
    assert again.id == task.id


@pytest.mark.parametrize("status", [Status.CORRECT, Status.WRONG, Status.MALFORMED])
def test_the_answers_doing_has_a_score(status: Status) -> None:
    for score in (None, -0.1, 1.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="needs a score"):
            Verdict(status, score)
    assert Verdict(status, 0.5).scored


@pytest.mark.parametrize("status", [Status.TIMEOUT, Status.VERIFIER_ERROR, Status.INFRA_ERROR, Status.PENDING])
def test_the_graders_doing_has_none(status: Status) -> None:
    with pytest.raises(ValueError, match="carries no score"):
        Verdict(status, 0.0)
    assert not Verdict(status).scored


def test_only_an_exact_one_is_correct() -> None:
    assert Verdict.of(True) == Verdict(Status.CORRECT, 1.0)
    assert Verdict.of(0.999).status is Status.WRONG
    assert Verdict.of(False).score == 0.0
    assert Verdict.malformed("x") == Verdict(Status.MALFORMED, 0.0, "x")
    with pytest.raises(ValueError, match="score"):
        Verdict.of(1.5)


def rollout() -> Rollout:
    said = Segment("policy", (5, 6), (-0.1, -0.2), temperature=0.7, version=3)
    return Rollout(
        task=Task("hi", env="m"),
        k=1,
        prompt_ids=(1, 2),
        segments=(said, Segment("env", (7,)), said),
        end=End.STOP,
        verdicts=(Verdict.of(False), Verdict.of(True)),
        text=("a", "b"),
        env_return=1.0,
    )


def test_a_rollout_counts_policy_tokens_only_and_its_last_verdict_decides() -> None:
    assert rollout().policy_tokens == 4
    assert rollout().verdict == Verdict.of(True)


def test_a_rollout_survives_json() -> None:
    assert Rollout.from_json(json.loads(json.dumps(rollout().to_json()))) == rollout()


def test_segments_of_the_policy_carry_log_probs_and_others_none() -> None:
    with pytest.raises(AssertionError):
        Segment("policy", (1, 2), (-0.5,))
    with pytest.raises(AssertionError):
        Segment("env", (1,), (-0.5,))


def test_mean() -> None:
    assert mean([1.0, 2.0]) == 1.5
    assert math.isnan(mean([]))
