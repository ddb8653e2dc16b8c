"""`k2rl env new`: a small environment that works, with its test, to be changed into one's own."""

from __future__ import annotations

import keyword
import shlex
from dataclasses import dataclass
from pathlib import Path

from k2rl.errors import UserError

ENV_TEMPLATE = '''\
"""Write a word backwards: an environment to start from."""

from collections.abc import Iterator

from k2rl import SingleTurnEnv, Split, Task, Verdict
from k2rl.rng import generator, in_test_split

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class CLASS(SingleTurnEnv):
    """Write a word backwards."""

    budget = 32  # tokens a response may use

    def tasks(self, split: Split, seed: int) -> Iterator[Task]:
        """Endless tasks. The word alone decides its split, so train and test never overlap."""
        draw = generator("NAME", split, seed)
        while True:
            word = "".join(LETTERS[i] for i in draw.integers(len(LETTERS), size=5))
            if in_test_split("NAME", word) == (split == "test"):
                yield Task(prompt=f"Write this word backwards: {word}", answer=word[::-1])

    def gold(self, task: Task) -> str | None:
        """A response that passes: for `k2rl sft`, PTX data and the test beside this file."""
        return task.answer

    def verify(self, task: Task, response: str) -> Verdict:
        """Correct or wrong; malformed where the response can't be read as an answer at all."""
        if len(response.split()) != 1:
            return Verdict.malformed("the answer is one word")
        return Verdict.of(response.strip() == task.answer, f"expected {task.answer}")
'''

TEST_TEMPLATE = '''\
"""Run with `python -m pytest test_NAME_env.py`."""

from NAME_env import CLASS

from k2rl import Task
from k2rl.envcheck import check_env


def test_it_is_fit_to_train_on() -> None:
    """The gold answers pass, hacks fail, tasks repeat, splits are apart, …: as `k2rl env check` says."""
    report = check_env(CLASS())
    assert report.ok, str(report)


def test_right_and_wrong_answers() -> None:
    env, task = CLASS(), Task(prompt="Write this word backwards: abcde", answer="edcba")
    assert env.verify(task, "edcba").status == "correct"
    assert env.verify(task, "abcde").status == "wrong"
    assert env.verify(task, "e d c b a").status == "malformed"
'''


@dataclass(frozen=True)
class NewEnv:
    """What `new_env` wrote, and the commands that use it from the current folder."""

    files: tuple[Path, Path]
    test_command: str
    train_command: str


def class_name(name: str) -> str:
    """`word_chain` -> `WordChainEnv`."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_")) + "Env"


def new_env(name: str, folder: Path) -> NewEnv:
    """Write `<name>_env.py` and `test_<name>_env.py` into `folder`.

    Raises:
        UserError: the name is no identifier, the folder is missing or not writable, or a file is in the way.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        raise UserError(f"{name!r} can't name an environment: use letters, digits and _, such as word_chain")
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: make it first, or choose another --dir")
    env_file, test_file = folder / f"{name}_env.py", folder / f"test_{name}_env.py"
    for path in (env_file, test_file):
        if path.exists():
            raise UserError(f"{path} exists: choose another name or --dir, nothing is overwritten")
    try:
        for path, template in ((env_file, ENV_TEMPLATE), (test_file, TEST_TEMPLATE)):
            path.write_text(template.replace("NAME", name).replace("CLASS", class_name(name)), encoding="utf-8")
    except OSError as error:
        raise UserError(f"can't write {error.filename}: {error.strerror}") from None
    target = shlex.quote(f"envs.{name}.id={env_file}:{class_name(name)}")
    return NewEnv(
        files=(env_file, test_file),
        test_command=f"python -m pytest {shlex.quote(str(test_file))}",
        train_command=f"k2rl train quickstart {target}",
    )
