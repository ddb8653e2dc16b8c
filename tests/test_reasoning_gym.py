"""The data sets of reasoning_gym: gold passes, hacks are refused, answers that run code are never evaluated."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from k2rl_envs.logic_env import LogicEnv
from k2rl_envs.reasoning_gym_scorer import EVALUATING, pack, unpack, unsafe
from k2rl_rewards.grader import GraderError
from tasks_contract import NOISE, check_tasks, gold, take

from k2rl.types import Status

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
        if task.answer is None:
            continue
        for form in ("{1} {0} {1}", "{1}\n{0}\n{1}", "#### {1} {0} {1}", "#### {0} {1}"):
            assert env.verify(task, form.format(task.answer, NOISE)).score == 0.0, (name, form)
        if env.verify(task, gold(env, task)).score == 1.0:
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


# Their scorers search the answer for what they want; the last one's walks through anything.
@pytest.mark.parametrize("name", ["gsm_symbolic", "knights_knaves", "kakurasu", "survo", "time_intervals", "sokoban"])
def test_gold_among_other_words_is_wrong(name: str) -> None:
    env = LogicEnv(f"reasoning_gym:{name}")
    for task in take(env, 3):
        for form in ("{1} {0} {1}", "{1}\n{0}\n{1}", "#### {1} {0} {1}", "#### {0} {1}", "#### {0} {0}"):
            assert env.verify(task, form.format(task.answer, NOISE)).score == 0.0, form
        assert env.verify(task, gold(env, task)).score == 1.0


def test_a_coin_flips_probability_is_compared_as_a_number() -> None:
    env = LogicEnv("reasoning_gym:coin_flip")
    for task in take(env, 6):
        answer = str(task.answer)
        assert env.verify(task, f"#### {answer}").score == 1.0
        for other in ("0", answer[:2], answer[:3], f"{answer}/2", "1e-99", "0.", "-0", "9" * 40):
            assert env.verify(task, f"#### {other}").score == 0.0, (answer, other)


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

    monkeypatch.setattr("k2rl_envs.reasoning_gym_scorer.scorer.call", broken)
    assert env.verify(task, "#### 2").status is Status.VERIFIER_ERROR


def test_entries_survive_json() -> None:
    entry = {"a": (1, [2.5, None]), "b": {1: "x", (2, 3): {True}}, "c": {"$d": 1}, "e": frozenset("gh")}
    assert unpack(json.loads(json.dumps(pack(entry)))) == entry
    with pytest.raises(TypeError, match="can't store"):
        pack(object())


def test_a_data_set_with_few_questions_ends() -> None:
    env = LogicEnv("reasoning_gym:products", config={"min_digits": 1, "max_digits": 1, "max_terms": 2})
    assert 50 < len(take(env, 9_999)) + len(take(env, 9_999, "test")) <= 100


def test_config_reaches_the_data_set() -> None:
    def terms(config: dict[str, int]) -> Sequence[int]:
        env = LogicEnv("reasoning_gym:chain_sum", config=config, instruction="")
        return [len(re.findall(r"\d+", str(t.prompt))) for t in take(env, 5)]

    assert set(terms({"min_terms": 6, "max_terms": 6})) == {6}
