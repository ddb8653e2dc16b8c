"""The contract of an environment, as numbered behaviours.

1. reset takes a task, or draws a training task by the seed; the observation is the prompt, info has the task.
2. A prompt of messages is handed on as `info["messages"]`.
3. step returns the verdict in info, its score as reward, or 0.0 where there is none, and ends the episode.
4. gold is the task's answer unless the env says otherwise.
5. spawn shares what setup loaded and nothing that reset sets.
6. Spaces take any string; gymnasium's own checker passes.
7. A plain gymnasium env works: tasks are seeds, splits are disjoint, each rollout has its own state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

from k2rl.env import Env, GymTextEnv, SingleTurnEnv, UnicodeText, single_turn
from k2rl.plugins import installed, make_env
from k2rl.types import Split, Status, Task, Verdict


class Reverse(SingleTurnEnv):
    """Reverse a number."""

    budget = 8

    def setup(self) -> None:
        self.loaded = ["heavy"]

    def tasks(self, split: Split, seed: int) -> Iterator[Task]:
        for n in range(100, 1000):
            if (n % 5 == 0) == (split == "test"):
                yield Task(f"Reverse {n}", answer=str(n)[::-1])

    def verify(self, task: Task, response: str) -> Verdict:
        if response == "broken":
            return Verdict.failure(Status.VERIFIER_ERROR, "the grader broke")
        return Verdict.of(response == task.answer)


class Counter(gymnasium.Env[str, str]):
    """Say the next number, three times."""

    observation_space = UnicodeText()
    action_space = UnicodeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.numbers = [int(self.np_random.integers(100))]
        return str(self.numbers[-1]), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.numbers.append(self.numbers[-1] + 1)
        right = action == str(self.numbers[-1])
        return str(self.numbers[-1]), float(right), len(self.numbers) == 4, False, {}


def test_1_reset_takes_a_task() -> None:
    env, task = Reverse(), Task("Reverse 123", answer="321")
    observation, info = env.reset(options={"task": task})
    assert observation == "Reverse 123"
    assert info["task"] is task is env.task


def test_1_reset_draws_a_training_task_by_the_seed() -> None:
    drawn = [Reverse().reset(seed=s)[0] for s in (1, 1, 2, 3, 4)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1
    train = {task.prompt for task in Reverse().tasks("train", 0)}
    assert set(drawn) <= train


def test_2_messages_are_handed_on() -> None:
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"})
    observation, info = Reverse().reset(options={"task": Task(messages)})
    assert observation == "Be brief.\n\nHi"
    assert info["messages"] == messages


@pytest.mark.parametrize(
    ("response", "status", "reward"),
    [("321", "correct", 1.0), ("1", "wrong", 0.0), ("broken", "verifier_error", 0.0)],
)
def test_3_step_ends_with_a_verdict(response: str, status: str, reward: float) -> None:
    env = Reverse()
    env.reset(options={"task": Task("Reverse 123", answer="321")})
    observation, got, terminated, truncated, info = env.step(response)
    assert (observation, got, terminated, truncated) == ("", reward, True, False)
    assert info["verdict"].status == status
    assert single_turn(env)


def test_4_gold_passes() -> None:
    env = Reverse()
    for task in islice(env.tasks("train", 0), 5):
        env.reset(options={"task": task})
        gold = env.gold(task)
        assert isinstance(gold, str)
        assert env.step(gold)[1] == 1.0


def test_5_spawn_shares_setup_only() -> None:
    worker = Reverse()
    worker.setup()
    one, two = worker.spawn(), worker.spawn()
    one.reset(options={"task": Task("a", answer="1")})
    two.reset(options={"task": Task("b", answer="2")})
    assert (one.task.prompt, two.task.prompt) == ("a", "b")
    assert vars(one)["loaded"] is vars(two)["loaded"] is worker.loaded
    assert one.step("1")[1] == two.step("2")[1] == 1.0


def test_6_spaces_take_any_string() -> None:
    space = UnicodeText(max_sample_length=16, seed=0)
    for text in ("", "Was ist 2+2? 🙂", "\n\0", *(space.sample() for _ in range(50))):
        assert space.contains(text)
    assert not space.contains(3)
    assert max(len(space.sample()) for _ in range(200)) <= 16
    assert space == UnicodeText()
    assert hash(space) == hash(UnicodeText())
    assert UnicodeText(seed=1).sample() == UnicodeText(seed=1).sample()


def test_6_gymnasiums_checker_passes() -> None:
    check_env(Reverse(), skip_render_check=True)


@pytest.fixture
def needed(tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    """The arguments that an environment can't do without."""
    rows = tmp_path / "prompts.jsonl"
    rows.write_text("".join(f'{{"prompt": "Say {n} in words."}}\n' for n in range(60)))
    return lambda name: {"data": str(rows)} if name == "open" else {}


@pytest.mark.parametrize("name", sorted(installed("envs")))
def test_6_gymnasiums_checker_passes_on_installed_envs(name: str, needed: Callable[[str], dict[str, Any]]) -> None:
    check_env(make_env(name, needed(name)), skip_render_check=True)


def test_6_installed_envs_are_registered_with_gymnasium(needed: Callable[[str], dict[str, Any]]) -> None:
    for name in installed("envs"):
        env = gymnasium.make(f"k2rl/{name}-v0", **needed(name))
        assert isinstance(env.unwrapped, Env)
        assert isinstance(env.reset(seed=0)[0], str)


def test_7_a_plain_env_has_seeds_for_tasks() -> None:
    env: Env = GymTextEnv(Counter())
    train = [task.reference["seed"] for task in islice(env.tasks("train", 0), 5)]
    test = [task.reference["seed"] for task in islice(env.tasks("test", 0), 5)]
    assert train == [0, 2, 4, 6, 8]
    assert test == [1, 3, 5, 7, 9]
    task = next(iter(env.tasks("train", 0)))
    assert env.reset(options={"task": task})[0] == task.prompt
    assert env.gold(task) is None


def test_7_rollouts_of_a_plain_env_do_not_share_state() -> None:
    env = GymTextEnv(Counter())
    first, second = islice(env.tasks("train", 0), 2)
    one, two = env.spawn(), env.spawn()
    number = int(one.reset(options={"task": first})[0])
    two.reset(options={"task": second})
    rewards, ended = [], False
    for step in range(1, 4):
        _, reward, ended, _, info = one.step(str(number + step))
        two.step("?")
        rewards.append(reward)
        assert "verdict" not in info
    assert rewards == [1.0, 1.0, 1.0]
    assert ended
    assert not single_turn(env)


def test_an_env_without_snapshots_is_replayed() -> None:
    assert Reverse().snapshot() is None
    with pytest.raises(NotImplementedError, match="can't restore"):
        Reverse().restore(Task("x"), b"")
