"""The contract of MathAnswer: what is correct, wrong and malformed, and whose fault a grader's failure is."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from k2rl_rewards.math_answer import MathAnswer, final_answer
from k2rl_rewards.math_grader import math_verify_same
from k2rl_rewards.math_spelling import canonical, exact, plain_number

from k2rl.errors import UserError
from k2rl.types import Status

CASES = [json.loads(line) for line in Path(__file__).with_name("math_conformance.jsonl").read_text().splitlines()]
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


@pytest.mark.parametrize("about", sorted({case["about"] for case in CASES}))
def test_what_equals_what(about: str) -> None:
    """`math_conformance.jsonl` is the contract, in the rows of `k2rl eval-rewards verifier`."""
    cases = [case for case in CASES if case["about"] == about]
    found = [status(case["prediction"], case["gold"]) for case in cases]
    misjudged = [(c, f) for c, f in zip(cases, found, strict=True) if (f == "correct") != c["expected"]]
    assert misjudged == []
    assert set(found) <= {"correct", "wrong", "malformed"}


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("first \\boxed{71}, so \\boxed{72}", "72"),
        ("#### 71 and then \\boxed{72}", "72"),  # a box goes before hashes
        ("\\boxed{72} but #### 71", "72"),
        ("#### 71\nThe answer is 70.\n#### 72\n73", "72"),  # hashes go before a phrase
        ("The answer is 71. No, the answer is 72. It was 70.", "72"),
        ("\\boxed{72}. Wait, that is wrong, it is 71.", "72"),
        ("\\boxed{x=1} or \\boxed{x=2}", "x=1, x=2"),  # one answer, a list
        ("$\\boxed{1}$,\n$\\boxed{2}$ and $\\boxed{3}$", "1, 2, 3"),
        ("$$\\boxed{72}$$\n\\boxed{72}", "72"),
        ("\\fbox{72}", "72"),
        ("\\framebox{72}", "72"),
        ("\\boxed 72.", "72"),
        ("\\boxed{\\boxed{72}}", "72"),
    ],
)
def test_the_final_answer(response: str, expected: str) -> None:
    assert final_answer(response) == expected


HOSTILE = [
    "10^{10^{10}}",
    "999999999!",
    "((999!)!)!",
    "2^{2^{2^{2^{2^2}}}}",
    "9^{9999}",
    "1e999999999",
    "\\int_0^1 x^{x^{x^x}} dx",
    "\\sum_{n=1}^{99999999} n!",
    "\\sqrt{" * 30 + "2" + "}" * 30,
    "(" * 95 + "1" + ")" * 95,
    "[" * 190,
    "{" * 98 + "}" * 98,
    "\\pm" * 60,
    "1," * 99,
    "\\sqrt2," * 25,
    "\\begin{pmatrix}" + "1 & " * 40 + "\\end{pmatrix}",
    "(x+1)^{9999}",
    "1" + "!" * 100,
    "\\" * 189,
    "\x00",
    "72\x00",
    "\ud800",
    "\U0001d7df\U0001d7da",
    "%" * 190,
    "=".join("1" * 95),
    "__import__('os').abort()",
    "1/0",
]


@pytest.mark.parametrize("gold", ["72", "\\sqrt{2}"])
def test_hostile_answers_are_judged_soon(gold: str) -> None:
    reward = MathAnswer(deadline_s=1.0)
    for answer in HOSTILE:
        start = time.perf_counter()
        assert reward(f"\\boxed{{{answer}}}", {"answer": gold}).score == 0.0, answer
        assert time.perf_counter() - start < 15.0, answer


@pytest.mark.parametrize("gold", ["", "\x00", "\ud800", "{" * 98 + "}" * 98, "[" * 190, "%" * 190, "\\", "9" * 9_999])
def test_odd_gold_answers_crash_nothing(gold: str) -> None:
    assert REWARD("\\boxed{\\sqrt{2}}", {"answer": gold}).status is not Status.CORRECT


@pytest.mark.parametrize(
    "response",
    [
        "x" * 1_000_000,
        "\\boxed{" * 100_000,
        "}" * 1_000_000,
        "####" * 250_000,
        "the answer is " * 70_000,
        "the" + " " * 1_000_000,
        "\\boxed{1},\\boxed{2}," * 50_000,
        "\\boxed{" + "9" * 1_000_000 + "}",
    ],
)
def test_long_responses_are_malformed_at_once(response: str) -> None:
    start = time.perf_counter()
    assert status(response, "72") == "malformed"
    assert time.perf_counter() - start < 2.0


@pytest.mark.slow
def test_a_gold_answer_that_hangs_the_grader_gives_no_score() -> None:
    verdict = MathAnswer(deadline_s=1.0)("\\boxed{\\sqrt{2}}", {"answer": "\\binom{99999999}{49999999}"})
    assert (verdict.status, verdict.score) == (Status.TIMEOUT, None)
    assert "gold answer fails as well" in verdict.detail


@pytest.mark.slow
def test_an_answer_that_hangs_delays_no_other_threads_answer() -> None:
    assert status("\\boxed{\\sqrt{2}}", "3^{1/2}") == "wrong"  # a grader is running
    hangs = [f"\\boxed{{\\binom{{9999999{n}}}{{49999999}}}}" for n in range(3)]
    with ThreadPoolExecutor(3) as pool:
        hanging = [pool.submit(MathAnswer(deadline_s=4.0), hang, {"answer": "\\sqrt{2}"}) for hang in hangs]
        time.sleep(0.5)
        start = time.perf_counter()
        assert status("\\boxed{\\sqrt{8}}", "2\\sqrt{2}") == "correct"
        assert time.perf_counter() - start < 4.0
        assert not any(future.done() for future in hanging)
        assert all(future.result().status is Status.MALFORMED for future in hanging)


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
        "import sys; from k2rl_rewards.math_grader import math_grader as g; "
        "assert g()('\\\\sqrt{4}', '2'); print('torch' in sys.modules)"
    )
    env = {"PYTHONPATH": ":".join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("file", "gold", "response"),
    [
        ("gsm8k/train.jsonl", "answer", "{answer}"),
        ("math/math_200.jsonl", "solution", "{solution}"),
        ("math/amc23.jsonl", "answer", "#### {answer}"),
        ("math/aime24.jsonl", "answer", "The answer is {answer}."),
        ("math/svamp.jsonl", "Answer", "\\boxed{{{Answer}}}"),
    ],
)
def test_real_gold_answers_pass(file: str, gold: str, response: str) -> None:
    if not (DATA / file).is_file():
        pytest.skip(f"no real data at {DATA / file}")
    rows = [json.loads(line) for line in (DATA / file).read_text("utf-8").splitlines()]
    assert [row for row in rows if status(response.format(**row), str(row[gold])) != "correct"] == []
    others = zip(rows, rows[13:200], strict=False)
    crossed = [status(response.format(**a), str(b[gold])) == "correct" for a, b in others]
    assert sum(crossed) <= 0.2 * len(crossed)  # different problems, though some share a small whole number


def test_math_verify_itself_accepts_real_gold_answers() -> None:
    """Gold against gold is decided by spelling; here the grader has to read every one of them."""
    file = DATA / "math/math_200.jsonl"
    if not file.is_file():
        pytest.skip(f"no real data at {file}")
    golds = [final_answer(json.loads(line)["solution"]) for line in file.read_text("utf-8").splitlines()]
    same = math_verify_same()
    formulas = [exact(canonical(gold)) for gold in golds if "text" not in gold and "$" not in gold]
    assert sum(same(f, f) for f in formulas) >= 0.99 * len(formulas)
