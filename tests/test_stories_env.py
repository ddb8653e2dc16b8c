"""The `stories` environment: held-out words, gold stories, and a real story model."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
from k2rl_envs.stories_env import CHILDREN, NOUNS, UNSEEN, StoriesEnv
from k2rl_rewards.story_words import is_real

from k2rl.envcheck import check_env
from k2rl.errors import UserError
from k2rl.loop import train
from k2rl.recipe import Recipe
from k2rl.recipe_files import load, resolve
from k2rl.types import Split, Task

ENV = "k2rl_envs.stories_env:StoriesEnv"


def take(env: StoriesEnv, split: Split, n: int = 400) -> list[Task]:
    return list(islice(env.tasks(split, 0), n))


@pytest.mark.parametrize("words", [1, 2, 3])
@pytest.mark.parametrize("unseen", [False, True])
def test_gold_stories_keep_the_rules(words: int, unseen: bool) -> None:
    env = StoriesEnv(words, unseen)
    for task in take(env, "train", 100) + take(env, "test", 100):
        assert env.verify(task, env.gold(task)).score == 1.0, env.gold(task)
        assert env.verify(task, str(task.prompt)).score == pytest.approx(0.0, abs=0.49)


def test_test_tasks_have_sets_of_words_that_no_training_task_has() -> None:
    env = StoriesEnv()
    train, test = ({tuple(sorted(t.reference["words"])) for t in take(env, split, 3000)} for split in ("train", "test"))
    assert train
    assert test
    assert not train & test
    words = {w for pair in train for w in pair}
    assert words == {w for pair in test for w in pair}, "the words themselves are known"
    assert not words & set(UNSEEN)


def test_unseen_words_are_in_no_other_task() -> None:
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        found = {w for t in take(StoriesEnv(unseen=True), split) for w in t.reference["words"]}
        assert found <= set(UNSEEN)


def test_prompts_are_beginnings_of_stories() -> None:
    task = next(iter(StoriesEnv(3).tasks("train", 0)))
    name, (a, b, c) = task.reference["name"], task.reference["words"]
    assert str(task.prompt).startswith(f"One day, {name} found a")
    assert all(f" {w}" in str(task.prompt) for w in (a, b, c))
    assert len(set(task.reference["words"])) == 3


def test_all_that_tasks_name_counts_as_real() -> None:
    assert not [w for w in (*NOUNS, *map(str.lower, CHILDREN)) if not is_real(w)]
    assert len(set(NOUNS)) == len(NOUNS)


@pytest.mark.parametrize("words", [0, 4, "two", None])
def test_a_wrong_number_of_words(words: object) -> None:
    with pytest.raises(UserError, match="allowed are 1 to 3"):
        StoriesEnv(words)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("args", [{}, {"words": 1}, {"words": 3, "unseen": True}])
def test_it_passes_the_check(args: dict[str, object]) -> None:
    report = check_env(ENV, args=args)
    assert report.ok, str(report)


def test_the_recipe_needs_a_model() -> None:
    with pytest.raises(UserError, match=r"model\.path"):
        load(Recipe, "stories")
    assert load(Recipe, "stories", ["model.path=some/model"]).envs["stories"].id == "stories"


@pytest.mark.slow
def test_a_real_story_model_trains(shared_data: Path, tmp_path: Path) -> None:
    """Its stories end with its start token: some end within the budget, before anything is learned."""
    spec = {"id": ENV, "pool": 50, "budget": {"tokens": 400}}
    keys = {
        "model": {"path": str(shared_data / "stories260k")},
        "envs": {"stories": spec},
        "run": {"iterations": 1, "eval_tasks": 0, "threads": 1},
        "rollout": {"tasks": 4, "group_size": 8},
    }
    train(resolve(Recipe, keys), tmp_path / "run", quiet=True)
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert row["budget_hit/stories"] < 0.8
    assert row["reward/stories"] > -0.5
