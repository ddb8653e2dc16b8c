"""From references to tests: what becomes a call, what a script, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
from k2rl_rewards.program_tests import program_tests

from k2rl.errors import UserError
from k2rl.protocols import CallTest, ScriptTest, StdioTest


@pytest.mark.parametrize(
    ("line", "call"),
    [
        ("assert f(1) == 2", CallTest("f", "(1,)", "2")),
        ("assert f() == None", CallTest("f", "()", "None")),
        ("assert 2 == f(1)", CallTest("f", "(1,)", "2")),
        ("assert f(1, [2, (3,)], {'a': {4}}) == 'x'", CallTest("f", "(1, [2, (3,)], {'a': {4}})", "'x'")),
        ("assert f(-1, 1.5, 2j, None, True, b'c') == -0.5", CallTest("f", "(-1, 1.5, 2j, None, True, b'c')", "-0.5")),
        ("assert (f(1)) == (2)", CallTest("f", "(1,)", "2")),
        ("assert f(1) == 2, 'one is two'", None),
        ("assert f(1) is None", CallTest("f", "(1,)", "None")),
        ("assert f(set()) == set()", CallTest("f", "(set(),)", "set()")),
        ("assert sum(1, 2) == 3", CallTest("sum", "(1, 2)", "3")),
    ],
)
def test_asserts_that_become_calls(line: str, call: CallTest | None) -> None:
    call = call or CallTest("f", "(1,)", "2")
    found = program_tests({"tests": [line]})
    assert found.tests == (call,)
    assert found.names == (call.fn,)


@pytest.mark.parametrize(
    "line",
    [
        "assert f(1)",
        "assert not f(1)",
        "assert f(1) is True",
        "assert f(1) is False",
        "assert f(1) != 2",
        "assert f(1) > 2",
        "assert 1 < f(1) == 2",
        "assert f(x=1) == 2",
        "assert f(*[1]) == 2",
        "assert f(1)[0] == 2",
        "assert f(f(1)) == 2",
        "assert f(1) == f(2)",
        "assert f(1.0 / 3) == 2",
        "assert f(1e999) == 2",
        "assert f(...) == 2",
        "assert f(1) == 2 and f(2) == 3",
        "assert set(f(1)) == {1}",
        "assert f.g(1) == 2",
        "x = f(1)\nassert x == 2",
        "for n in range(3):\n    assert f(n) == n",
        "def check(g):\n    assert g(1) == 2\ncheck(f)",
        "assert all(f(n) == n for n in range(3))",
        "try:\n    f(1)\n    assert False\nexcept ValueError:\n    pass",
    ],
)
def test_everything_else_becomes_a_script(line: str) -> None:
    (test,) = program_tests({"tests": [line]}).tests
    assert isinstance(test, ScriptTest)
    assert test.source.strip() == line
    assert test.fns == ("f",)


def test_one_source_may_hold_several_calls() -> None:
    assert len(program_tests({"tests": ["assert f(1) == 2\nassert f(2) == 3", "assert f(3) == 4"]}).tests) == 3


def test_names_of_the_program_and_of_the_test() -> None:
    setup = "import math\ndef near(a, b):\n    return math.isclose(a, b)\nroot = Node(1)"
    lines = ["assert near(area(root), 3.0)", "assert len(area(root, [n for n in (1, 2)])) == 2", "assert f(1) == 2"]
    first, second, third = program_tests({"tests": lines, "setup": setup}).tests
    assert first == ScriptTest(f"{setup}\n{lines[0]}", ("Node", "area"))
    assert second == ScriptTest(lines[1], ("Node", "area"))
    assert third == CallTest("f", "(1,)", "2")


def test_builtin_names_are_the_programs_where_the_reference_says_so() -> None:
    line = "assert sum([1.0 / 2]) == 0.5"
    with pytest.raises(UserError, match="name no function of the program"):
        program_tests({"tests": [line]})
    assert program_tests({"tests": [line], "fns": ["sum"]}).tests == (ScriptTest(f"\n{line}", ("sum",)),)
    both = program_tests({"tests": [line, "assert sum([1]) == 1"]})
    assert both.tests == (ScriptTest(f"\n{line}", ("sum",)), CallTest("sum", "([1],)", "1"))


def test_missing_imports_of_the_standard_library_are_made() -> None:
    (test,) = program_tests({"tests": ["assert math.isclose(f(1), sys.maxsize)"]}).tests
    assert test == ScriptTest("import math\nimport sys\n\nassert math.isclose(f(1), sys.maxsize)", ("f",))
    # A module's name that is called is a function.
    assert program_tests({"tests": ["assert random(0.5 + 0) == 1"]}).names == ("random",)


@pytest.mark.parametrize(
    ("setup", "before"),
    [
        ("import math\nfrom typing import List", "import math\nfrom typing import List"),
        ("import math\nclass Node:\n    pass\nroot = Node()", "import math\nclass Node:\n    pass"),
        ("def solution(x):\n    return x + 1\nANSWERS = [2]", ""),
        ("", ""),
    ],
)
def test_imports_and_classes_of_the_setup_go_before_the_program(setup: str, before: str) -> None:
    assert program_tests({"tests": ["assert f(1) == 2"], "setup": setup}).before == before


PROMPT = "from typing import List\n\ndef helper(x):\n    return x\n\ndef f(x: int) -> int:\n    '''Add one.'''\n"


def test_human_eval() -> None:
    calls = "METADATA = {'a': 1}\n\ndef check(candidate):\n    '''All of it.'''\n    assert candidate(1) == 2\n"
    calls += "    assert candidate(2) == 3, 'two'\n    assert True, 'fine'\n    pass\n"
    found = program_tests({"test": calls, "entry_point": "f", "prompt": PROMPT})
    assert found.tests == (CallTest("f", "(1,)", "2"), CallTest("f", "(2,)", "3"))
    assert found.before == PROMPT[: PROMPT.index("def f(")]
    assert (found.beginning, found.names) == (PROMPT, ("f",))
    loop = "def check(candidate):\n    for n in range(9):\n        assert abs(candidate(helper(n)) - n) < 2\n"
    (script,) = program_tests({"test": loop, "entry_point": "f", "prompt": PROMPT}).tests
    assert isinstance(script, ScriptTest)
    assert script.fns == ("f",)
    assert script.source.endswith("\ncheck(f)\n")
    assert "def helper" in script.source
    (script,) = program_tests({"test": loop, "entry_point": "f"}).tests
    assert isinstance(script, ScriptTest)
    assert script.fns == ("f", "helper")


def test_cases_and_inputs() -> None:
    found = program_tests({"fn": "f", "cases": [[[1, "a"], {"b": [None, True]}], [[], 0.5]]})
    assert found.tests == (CallTest("f", "(1, 'a')", "{'b': [None, True]}"), CallTest("f", "()", "0.5"))
    assert program_tests({"io": [{"stdin": "1\n", "stdout": "2"}]}).tests == (StdioTest("1\n", "2"),)


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ({}, "one of tests, test, fn, io, this one nothing"),
        ({"answer": 1}, "this one answer"),
        ({"tests": ["assert f(1) == 2"], "io": []}, "this one tests and io"),
        ({"tests": []}, "tests is empty"),
        ({"tests": "assert f(1) == 2"}, "tests must be a list"),
        ({"tests": ["assert f(1) == 2", "assert f(1) =="]}, "tests[1] does not parse: "),
        ({"tests": ["# nothing"]}, "tests[0] tests nothing"),
        ({"tests": [""]}, "tests[0] tests nothing"),
        ({"tests": [3]}, "tests[0] is no Python source: 3"),
        ({"tests": ["x = 1", "assert x"]}, "tests name no function of the program"),
        ({"tests": ["assert f(1) == 2"], "setup": "def"}, "setup does not parse"),
        ({"tests": ["assert f(1) == 2"], "setup": 3}, "setup must be text, got 3"),
        ({"tests": ["(" * 500 + ")" * 500]}, "tests[0] does not parse"),
        ({"test": "def check(c):\n    assert c(1) == 2"}, "entry_point must be text"),
        ({"test": "def check(c): c(1)", "entry_point": "a b"}, "entry_point must be the name of a function, got 'a b'"),
        ({"test": "assert f(1) == 2", "entry_point": "f"}, "test does not define check(candidate)"),
        ({"test": "def check(c):\n    pass\n    assert True", "entry_point": "f"}, "check(candidate) tests nothing"),
        ({"test": "def check(c): c(1)", "entry_point": "f", "prompt": "def g(): pass"}, "prompt does not define f"),
        ({"test": "def check(", "entry_point": "f"}, "test does not parse"),
        ({"fn": "f"}, "cases must be a list"),
        ({"fn": "f", "cases": []}, "cases is empty"),
        ({"fn": "f", "cases": [[1, 2]]}, "cases[0] must be [[argument, …], expected], got [1, 2]"),
        ({"fn": "f", "cases": [[[1], 2], [[1]]]}, "cases[1] must be"),
        ({"fn": "f", "cases": [[[float("nan")], 2]]}, "cases[0] holds a number that is not finite"),
        ({"fn": "class", "cases": [[[1], 2]]}, "fn must be the name of a function, got 'class'"),
        ({"io": [{"stdin": "1"}]}, "io[0] must have the texts stdin and stdout"),
        ({"io": [{"stdin": "1", "stdout": 2}]}, "io[0] must have"),
        ({"io": {}}, "io must be a list"),
    ],
)
def test_a_bad_reference_names_the_place(reference: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)) as caught:
        program_tests(reference)
    assert "\n" not in str(caught.value)
