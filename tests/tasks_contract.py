"""What holds for the tasks of every game of LogicEnv."""

from __future__ import annotations

import json
from itertools import islice

from k2rl_envs.logic_env import LogicEnv

from k2rl.types import Split, Task


def take(env: LogicEnv, n: int, split: Split = "train", seed: int = 0) -> list[Task]:
    return list(islice(env.tasks(split, seed), n))


def gold(env: LogicEnv, task: Task) -> str:
    found = env.gold(task)
    assert isinstance(found, str)
    return found


def check_tasks(env: LogicEnv, n: int) -> list[Task]:
    """What holds for every game; returns the training tasks."""
    train, test = take(env, n), take(env, n, "test")
    assert train == take(env, n)
    assert [t.prompt for t in train] != [t.prompt for t in take(env, n, seed=1)]
    assert len({t.id for t in train}) == len({t.prompt for t in train}) == len(train)
    assert not {t.prompt for t in train} & {t.prompt for t in test}
    for task in train + test:
        assert env.verify(task, gold(env, task)).score == 1.0
        assert env.verify(task, str(task.prompt)).score == 0.0
    assert Task.from_json(json.loads(json.dumps(train[0].to_json()))) == train[0]
    return train
