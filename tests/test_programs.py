"""The contract of generated programs: determined by their prompts, told from their neighbours by their cases."""

from __future__ import annotations

from itertools import islice, permutations

import pytest
from k2rl_envs import programs
from k2rl_envs.programs import LEVELS, STYLES, Program, demonstration, orders, passes, run, show

from k2rl.types import Split


def take(level: int, n: int, split: Split = "train", seed: int = 0) -> list[Program]:
    return list(islice(programs.programs(level, split, seed), n))


def operations(program: Program) -> tuple[str, ...]:
    return (program.steps[0].takes, *sorted(step.words for step in program.steps))


def program_of(text: str) -> str:
    """The code in a demonstration, found without the reward's help."""
    return text.split("```python\n")[1].removesuffix("```") if "```" in text else text


@pytest.mark.parametrize("level", LEVELS)
def test_streams(level: int) -> None:
    train, test = take(level, 300), take(level, 300, "test")
    assert [p.specification for p in train] == [p.specification for p in take(level, 300)]
    assert [p.specification for p in train] != [p.specification for p in take(level, 300, seed=1)]
    seen = {operations(p) for seed in range(3) for p in take(level, 300, seed=seed)}
    assert not seen & {operations(p) for p in test}
    assert {p.steps[0].takes for p in train} == {"number", "text", "list"}
    assert all(len(p.steps) == LEVELS[level] and p.ordered == (level < 3) for p in train)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("style", STYLES)
def test_demonstrations_are_right(level: int, style: str) -> None:
    for program in take(level, 100):
        text = demonstration(program, style, "key")
        assert text == demonstration(program, style, "key")
        space: dict[str, object] = {}
        exec(program_of(text), space)
        f = space["f"]
        assert callable(f)
        assert all(f(argument) == value for argument, value in program.cases)
        assert f(program.shown) == program.result
        assert program_of(text).strip() not in program.specification


@pytest.mark.parametrize("level", LEVELS)
def test_cases_tell_neighbours_apart(level: int) -> None:
    for program in take(level, 60):
        assert len(program.cases) == 6
        assert program.shown not in [argument for argument, _ in program.cases]
        steps = program.steps
        assert passes(steps, program.cases)
        for i, step in enumerate(steps):
            dropped = steps[:i] + steps[i + 1 :] if step.takes == step.gives else ()
            assert not (dropped and passes(dropped, program.cases))
            for family in programs.FAMILIES[step.takes]:
                for other in family:
                    if other is not step and other.gives == step.gives:
                        assert not passes((*steps[:i], other, *steps[i + 1 :]), program.cases)


@pytest.mark.parametrize("level", [3, 4])
def test_the_example_decides_the_order(level: int) -> None:
    for program in take(level, 60):
        meanings = orders(program.told, program.steps[0].takes)
        assert program.steps in meanings
        assert set(meanings) <= set(permutations(program.steps))
        fitting = [m for m in meanings if run(m, program.shown) == program.result]
        assert len(fitting) < len(meanings)
        assert fitting == [m for m in meanings if passes(m, program.cases)]


def test_a_checked_demonstration_follows_the_example() -> None:
    program = next(p for p in take(3, 999) if [s.words for s in p.steps] == ["double", "add 3"])
    texts = {demonstration(program, "checked", str(n)) for n in range(20)}
    x = program.shown
    hit = f"# x*2={2 * x} x+3={2 * x + 3} yes\ndef f(x): return (x*2)+3"
    assert texts == {hit, f"# x+3={x + 3} x*2={2 * (x + 3)} no\n{hit}"}


def test_programs_survive_json() -> None:
    for level in LEVELS:
        for program in take(level, 20):
            again = Program.from_json(program.to_json())
            assert again.specification == program.specification
            assert again.steps == program.steps


def test_values_are_shown_without_spaces() -> None:
    assert show([1, 23]) == "[1,23]"
    assert show("12") == "'12'"
    assert show(-3) == "-3"


def test_nothing_comes_of_the_largest_of_nothing() -> None:
    largest = programs.OPERATIONS["list", "largest"]
    assert run((largest,), []) is None
    assert not passes((largest,), (([1], 1), ([], None)))
