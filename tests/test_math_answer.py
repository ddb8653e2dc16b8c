"""The contract of MathAnswer: what is correct, wrong and malformed, and whose fault a grader's failure is."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from k2rl_rewards.math_answer import MathAnswer, plain_number

from k2rl.errors import UserError
from k2rl.types import Status

DATA = Path(__file__).parents[2] / "shared" / "data"
REWARD = MathAnswer()


def status(response: str, gold: str) -> str:
    return REWARD(response, {"answer": gold}).status.value


CORRECT = [
    ("48+24=72 #### 72", "72"),
    ("so \\boxed{72}.", "72"),
    ("The answer is 72.", "72"),
    ("The final answer is: **72**. Done", "72"),
    ("answer: $72$", "72"),
    ("The answer is:\n\n$$\\boxed{\\frac{1}{2}}$$", "1/2"),
    ("#### 1,234", "1234"),
    ("#### 1234", "1,234"),
    ("#### $72.00", "72"),
    ("#### 72 dollars", "72"),
    ("#### −5", "-5"),
    ("#### 3 1/2", "\\frac{7}{2}"),
    ("#### -0.5", "-\\frac{1}{2}"),
    ("#### x = 72", "72"),
    ("#### 48+24 = 72", "72"),
    ("#### 72\nThank you", "72"),
    ("\\boxed{\\sqrt{12}}", "2\\sqrt{3}"),
    ("\\boxed{x**2 + 1}", "1+x^2"),
    ("\\boxed{\\{2, 1\\}}", "\\{1,2\\}"),
    ("\\boxed{\\text{East}}", "east"),
    ("\\boxed{30^\\circ}", "30"),
    ("\\boxed{\\begin{pmatrix} 1 \\\\\n 2 \\end{pmatrix}}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
    ("#### 5", "so \\boxed{5}"),
    ("#### 575", "575\\text{ students}"),
]
WRONG = [
    ("#### 71", "72"),
    ("#### not 72", "72"),
    ("#### abc72", "72"),
    ("72 72 72. The answer is 3.", "72"),  # the gold answer buried in the text
    ("#### 71 or 72", "72"),
    ("#### 71, 72", "72"),
    ("#### 72, 71", "72"),
    ("#### 71 72", "72"),
    ("#### 7 2", "9"),  # math-verify reads it as a mixed number, 9
    ("#### 3 5", "15"),
    ("#### \\pm 72", "72"),
    ("#### 71 = 72", "72"),
    ("#### 72 = 71", "72"),
    ("#### 2x = 6", "6"),
    ("#### 5 million", "5"),
    ("#### seat", "east"),  # a product of the same letters
    ("#### 0.333", "1/3"),
    ("#### (0,1)", "[0,1)"),
    ("#### " + "1" * 150, "1"),
    ('End with a line "#### answer"', "72"),  # an echo of the prompt
]
MALFORMED = [
    ("72", "72"),
    ("", "72"),
    ("####", "72"),
    ("\\boxed{}", "72"),
    ("\\boxed{72", "72"),
    ("\\boxed{" * 5_000, "72"),
    ("#### 72} and {5", "72"),
    ("#### " + "7" * 100_000, "7"),
    ("\\boxed{" + "7" * 100_000 + "}", "7"),
    ("the " * 30_000, "72"),
    ("#### 9**9**9", "9"),
    ("#### 9^{9^{9}}", "9"),
    ("#### 2^{99999999}", "9"),
    ("#### 100000000!", "9"),
]


@pytest.mark.parametrize(("response", "gold"), CORRECT)
def test_honest_answers_are_correct(response: str, gold: str) -> None:
    assert status(response, gold) == "correct"


@pytest.mark.parametrize(("response", "gold"), WRONG)
def test_other_answers_are_wrong(response: str, gold: str) -> None:
    verdict = REWARD(response, {"answer": gold})
    assert (verdict.status, verdict.score) == (Status.WRONG, 0.0)
    assert verdict.detail


@pytest.mark.parametrize(("response", "gold"), MALFORMED)
def test_no_answer_is_malformed_and_decided_at_once(response: str, gold: str) -> None:
    start = time.perf_counter()
    verdict = REWARD(response, {"answer": gold})
    assert (verdict.status, verdict.score) == (Status.MALFORMED, 0.0)
    assert verdict.detail
    assert time.perf_counter() - start < 1.0


def test_plain_numbers_are_exact() -> None:
    assert plain_number("0.1") == plain_number("1/10") == plain_number("\\dfrac{1}{10}")
    assert plain_number("1/0") is None
    assert plain_number("1e9") is None
    assert plain_number("٣") is None  # a digit to Python, no number here


def test_a_bad_deadline_is_the_users_error() -> None:
    with pytest.raises(UserError, match="deadline_s"):
        MathAnswer(deadline_s=0)


@pytest.mark.slow
def test_an_answer_that_hangs_the_grader_is_malformed_and_the_grader_survives() -> None:
    reward = MathAnswer(deadline_s=2.0)
    hang = "\\binom{99999999}{49999999}"
    verdict = reward(f"\\boxed{{{hang}}}", {"answer": "\\sqrt{2}"})
    assert verdict.status is Status.MALFORMED
    assert "twice" in verdict.detail
    start = time.perf_counter()
    assert reward(f"\\boxed{{{hang}}}", {"answer": "\\sqrt{2}"}) == verdict  # known by now
    assert time.perf_counter() - start < 0.1
    assert status("\\boxed{\\sqrt{2}}", "2^{1/2}") == "correct"


def test_calls_from_many_threads_do_not_mix() -> None:
    def judge(n: int, other: int) -> str:
        return status(f"\\boxed{{\\sqrt{{2}} \\cdot {n}}}", f"{other}\\sqrt{{2}}")

    with ThreadPoolExecutor(8) as pool:
        right = list(pool.map(judge, range(2, 14), range(2, 14)))
        wrong = list(pool.map(judge, range(2, 14), range(3, 15)))
    assert right == ["correct"] * 12
    assert wrong == ["wrong"] * 12


def test_bare_answers_are_compared_without_a_search() -> None:
    assert REWARD.compare("1/2", "0.5").status is Status.CORRECT
    assert REWARD.compare("2/3", "0.5").status is Status.WRONG
    assert REWARD.compare("", "0.5").status is Status.MALFORMED


def test_the_reward_and_its_worker_load_no_torch() -> None:
    code = (
        "import sys; from k2rl_rewards.math_answer import math_verify_grader as g; "
        "assert g()('\\\\sqrt{4}', '2'); print('torch' in sys.modules)"
    )
    env = {"PYTHONPATH": ":".join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("file", "column", "rows"),
    [("gsm8k/train.jsonl", "answer", 300), ("math/math_200.jsonl", "solution", 200)],
)
def test_real_gold_solutions_pass_against_themselves(file: str, column: str, rows: int) -> None:
    if not (DATA / file).is_file():
        pytest.skip(f"no real data at {DATA / file}")
    lines = (DATA / file).read_text("utf-8").splitlines()[:rows]
    solutions = [json.loads(line)[column] for line in lines]
    passed = [status(s, s) == "correct" for s in solutions]
    assert sum(passed) >= 0.99 * len(passed)
    crossed = [status(s, t) == "correct" for s, t in zip(solutions[:50], solutions[100:150], strict=True)]
    assert sum(crossed) <= 8  # different problems, though some share a small whole number
