"""The contract of LogicEnv's games: gold passes, splits disjoint, deterministic, hacks refused."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from gymnasium.utils.env_checker import check_env
from k2rl_envs.logic_env import EVALUATING, LogicEnv, pack, solve, unpack, unsafe
from k2rl_rewards.countdown import evaluate
from k2rl_rewards.math_answer import GraderError

from k2rl.errors import UserError
from k2rl.types import Split, Status, Task

KNIGHTS = Path(__file__).parents[2] / "shared" / "data" / "knights_and_knaves" / "3ppl" / "train.parquet"


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


def test_it_is_a_gymnasium_env() -> None:
    env = LogicEnv(level=2)
    check_env(env, skip_render_check=True)
    task = take(env, 1)[0]
    env.reset(options={"task": task})
    assert env.step(gold(env, task))[1] == 1.0


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
def test_countdown(level: int) -> None:
    task = check_tasks(LogicEnv("countdown", level=level, instruction=""), 200)[0]
    numbers, target = task.reference["numbers"], task.reference["target"]
    assert task.prompt == f"Use {' '.join(map(str, numbers))} to make {target}"
    assert task.tags == ("countdown", f"level-{level}")


def test_countdown_gold_does_not_depend_on_name_or_instruction() -> None:
    bare, told = LogicEnv(level=3, instruction=""), LogicEnv(level=3, instruction="Please.")
    assert [bare.gold(t) for t in take(bare, 50)] == [told.gold(t) for t in take(told, 50)]
    assert take(told, 1)[0].prompt == f"{take(bare, 1)[0].prompt}\nPlease."


def test_twenty_four() -> None:
    env = LogicEnv(24)
    train, test = check_tasks(env, 50), take(env, 9_999, "test")
    assert 150 < len(test) < 400
    hands = [tuple(sorted(t.reference["numbers"])) for t in test]
    assert len(set(hands)) == len(hands)
    assert not {tuple(sorted(t.reference["numbers"])) for t in train} & set(hands)


@pytest.mark.parametrize(
    ("numbers", "solvable"),
    [((3, 3, 8, 8), True), ((1, 5, 5, 5), True), ((1, 1, 1, 1), False), ((13, 13, 13, 13), False)],
)
def test_the_solver_is_exact(numbers: tuple[int, ...], solvable: bool) -> None:
    found = solve(numbers, 24)
    assert (found is not None) == solvable
    if found:
        value, used = evaluate(found)
        assert value == 24
        assert tuple(sorted(used)) == numbers


def test_knights_on_real_puzzles() -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    if not KNIGHTS.is_file():
        pytest.skip(f"no real data at {KNIGHTS}")
    env = LogicEnv("knights", data=str(KNIGHTS))
    train = check_tasks(env, 200)
    assert len(take(env, 9_999)) + len(take(env, 9_999, "test")) == 900
    assert train[0].tags == ("knights", "people-3")
    flipped = gold(env, train[0]).replace("knight", "x").replace("knave", "knight").replace("x", "knave")
    assert env.verify(train[0], flipped).status is Status.WRONG


def test_knights_from_json_lines(tmp_path: Path) -> None:
    rows = [
        {"q": f"Ann says {n}. Who is what?", "who": ["Ann", "Bob"], "solution": [n % 2 == 0, True]} for n in range(60)
    ]
    path = tmp_path / "k.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    fields = {"prompt": "q", "names": "who"}
    check_tasks(LogicEnv("knights", data=str(path), fields=fields, test_share=0.3), 20)
    rows[7]["solution"] = [True]
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    with pytest.raises(UserError, match=r"k\.jsonl, line 8, field 'solution': 1 entries for 2 names"):
        LogicEnv("knights", data=str(path), fields=fields)


GYM = [
    "basic_arithmetic",
    "countdown",
    "knights_knaves",
    "maze",
    "n_queens",
    "sudoku",
    "word_sorting",
    "rearc",  # entries hold tuples, which its scorer tells from lists
    "rectangle_count",  # grids of #
]


@pytest.mark.parametrize("name", GYM)
def test_reasoning_gym(name: str) -> None:
    check_tasks(LogicEnv(f"reasoning_gym:{name}"), 4)


@pytest.mark.slow
def test_most_data_sets_of_reasoning_gym_work() -> None:
    from reasoning_gym.factory import DATASETS

    passed = set()
    for name in sorted(set(DATASETS) - {"composite", "futoshiki", "knight_swap"}):
        env = LogicEnv(f"reasoning_gym:{name}")
        task = take(env, 1)[0]
        assert json.loads(json.dumps(task.to_json())) == task.to_json()
        for junk in ("", "qqq", str(task.prompt)):
            assert env.verify(task, junk).score == 0.0, (name, junk)
        if task.answer is not None and env.verify(task, gold(env, task)).score == 1.0:
            passed.add(name)
    assert len(passed) >= 90


def test_only_an_exact_score_counts() -> None:
    env = LogicEnv("reasoning_gym:basic_arithmetic")
    task = take(env, 1)[0]
    verdict = env.verify(task, f"#### it is {task.answer} I think")
    assert (verdict.status, verdict.score) == (Status.WRONG, 0.0)
    for form in ("so\n#### {}", "\\boxed{{{}}}", "#### Step 1\n<answer>{}</answer>", "{}"):
        assert env.verify(task, form.format(task.answer)).score == 1.0
    assert env.verify(task, "\\boxed{1").status is Status.MALFORMED
    assert env.verify(task, "#### " + "1" * 100_000).status is Status.MALFORMED


def test_a_scorer_that_accepts_anything_is_replaced() -> None:
    env = LogicEnv("reasoning_gym:game_of_life_halting")
    for task in take(env, 6):
        other = {"True": "False", "False": "True"}[str(task.answer)]
        assert env.verify(task, gold(env, task)).score == 1.0
        assert env.verify(task, f"#### {other}").score == 0.0
        assert env.verify(task, f"#### {task.answer} {other}").score == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        "__import__('os').system('true')",
        "open('x', 'w')",
        "ｏｐｅｎ(1)",
        "(open)(1)",
        "[open][0](1)",
        "open\\\n(1)",
        "[open #\n(1)]",
        "log('open%c' % 40)",
        "exec ('1')",
        "Integral(x, x)",
        "x.diff(x)",
        "1 or 2",
        "(lambda: 1)()",
    ],
)
def test_answers_that_run_code_are_not_evaluated(answer: str) -> None:
    assert unsafe(answer)
    env = LogicEnv("reasoning_gym:simple_integration")
    assert env.verify(take(env, 1)[0], f"#### {answer}").score == 0.0


@pytest.mark.parametrize(
    "answer", ["3*x**2/2 + C", "sin(x)*exp(2*x) - log(x)", "(1 + 2) * 4", "[['Q', '_'], ['_', 'Q']]", "-7"]
)
def test_honest_answers_are_evaluated(answer: str) -> None:
    assert not unsafe(answer)


def test_every_scorer_that_evaluates_answers_is_known() -> None:
    """A new reasoning_gym may bring more of them."""
    import reasoning_gym

    evaluates = re.compile(r"\b(?:eval|exec|parse_expr|sympify)\(\w*answer\b")
    files = Path(str(reasoning_gym.__file__)).parent.rglob("*.py")
    assert {file.stem for file in files if evaluates.search(file.read_text("utf-8"))} == EVALUATING


def test_a_scorer_that_fails_is_put_down_to_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    env = LogicEnv("reasoning_gym:prime_factorization")
    task = take(env, 1)[0]
    assert env.verify(task, "#### x x x").status is Status.MALFORMED  # int("x") in the scorer

    def broken(*args: object, deadline_s: float) -> float:
        raise GraderError(Status.VERIFIER_ERROR, "broken")

    monkeypatch.setattr("k2rl_envs.logic_env._scorer.call", broken)
    assert env.verify(task, "#### 2").status is Status.VERIFIER_ERROR


def test_entries_survive_json() -> None:
    entry = {"a": (1, [2.5, None]), "b": {1: "x", (2, 3): {True}}, "c": {"$d": 1}, "e": frozenset("gh")}
    assert unpack(json.loads(json.dumps(pack(entry)))) == entry
    with pytest.raises(TypeError, match="can't store"):
        pack(object())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"game": "contdown"}, "did you mean 'countdown'"),
        ({"game": "reasoning_gym"}, "unknown game"),
        ({"game": "reasoning_gym:suduko"}, "did you mean 'sudoku'"),
        ({"game": "reasoning_gym:sudoku", "config": {"min_emty": 1}}, "did you mean 'min_empty'"),
        ({"game": "reasoning_gym:sudoku", "config": {"min_empty": -1}}, "refuses this config of sudoku"),
        ({"game": "reasoning_gym:sudoku", "config": {"seed": 1}}, "config.seed"),
        ({"game": "countdown", "level": 9}, "unknown level 9"),
        ({"game": "24", "level": 1}, "level has no effect"),
        ({"game": "countdown", "data": "x.jsonl"}, "data has no effect"),
        ({"game": "countdown", "config": {"x": 1}}, "config has no effect"),
        ({"game": "knights"}, "needs data"),
    ],
)
def test_bad_arguments_are_the_users_error(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        LogicEnv(**arguments)
    assert told in str(caught.value)


def test_a_data_set_with_few_questions_ends() -> None:
    env = LogicEnv("reasoning_gym:products", config={"min_digits": 1, "max_digits": 1, "max_terms": 2})
    assert 50 < len(take(env, 9_999)) + len(take(env, 9_999, "test")) <= 100


def test_config_reaches_the_data_set() -> None:
    def terms(config: dict[str, int]) -> Sequence[int]:
        env = LogicEnv("reasoning_gym:chain_sum", config=config, instruction="")
        return [len(re.findall(r"\d+", str(t.prompt))) for t in take(env, 5)]

    assert set(terms({"min_terms": 6, "max_terms": 6})) == {6}
