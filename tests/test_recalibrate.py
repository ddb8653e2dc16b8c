"""Which pairs of the policy's own answers teach the judge."""

from __future__ import annotations

import json
from collections.abc import Sequence

from k2rl.chat import Chat
from k2rl.critic import pairs
from k2rl.critic.prompt import JudgePrompt
from k2rl.critic.recalibrate import Window, verified_pairs
from k2rl.critic.records import Pair
from k2rl.types import End, Group, Rollout, Task, Verdict

WORDS = {"math": ("correct",), "code": ("correct",)}


def group(env: str, name: str, answers: Sequence[tuple[str, Verdict, End]]) -> Group:
    task = Task(f"task {name}", env=env)
    return Group(
        task,
        tuple(Rollout(task, k, (1,), (), end, (verdict,), (text,)) for k, (text, verdict, end) in enumerate(answers)),
    )


RIGHT, WRONG = Verdict.of(True), Verdict.of(False)


def test_both_ended_by_themselves_and_both_parseable() -> None:
    one = group(
        "math",
        "a",
        [
            ("1", RIGHT, End.STOP),
            ("2", WRONG, End.STOP),
            ("3", Verdict.malformed("cut"), End.BUDGET),
            ("4", Verdict.malformed("no answer"), End.STOP),
            ("5", RIGHT, End.ENV_LIMIT),
            ("6", WRONG, End.BUDGET),
        ],
    )
    (pair,) = verified_pairs([one], WORDS, 9, 0)
    assert (pair.better, pair.worse, pair.kind, pair.criteria) == ("1", "2", "verified", ("correct",))
    assert pair.task == one.task.id


def test_a_response_stands_in_one_pair_and_a_text_once() -> None:
    answers = [("1", RIGHT, End.STOP)] * 5 + [("2", RIGHT, End.STOP)] + [(str(n), WRONG, End.STOP) for n in (3, 4, 5)]
    made = verified_pairs([group("math", "a", answers)], WORDS, 9, 0)
    assert len(made) == 2
    assert {p.better for p in made} == {"1", "2"}
    assert len({p.worse for p in made}) == 2


def test_environments_and_tasks_take_turns() -> None:
    many = [("1", RIGHT, End.STOP), ("2", RIGHT, End.STOP), ("3", WRONG, End.STOP), ("4", WRONG, End.STOP)]
    groups = [group("math", n, many) for n in "abc"] + [group("code", "d", many)]
    made = verified_pairs(groups, WORDS, 4, 0)
    assert [p.env for p in made] == ["code", "math", "code", "math"]
    assert len({p.task for p in made if p.env == "math"}) == 2
    assert made == verified_pairs(groups, WORDS, 4, 0)
    assert verified_pairs(groups, WORDS, 4, 0) != verified_pairs(groups, WORDS, 4, 1)


def numbered(env: str, iteration: int, count: int) -> list[Pair]:
    return [Pair(env, f"{env}{iteration}", "verified", (), (), f"{iteration}.{n}", "no") for n in range(count)]


def test_the_window_forgets_and_survives_json() -> None:
    window = Window(2)
    for iteration in (1, 2, 3):
        window.add(iteration, [*numbered("math", iteration, 6), *numbered("code", iteration, 2)])
    assert window.counts == {"math": 12, "code": 4}
    drawn = window.draw(6, 0)
    assert len(set(drawn)) == 6
    assert sum(p.env == "code" for p in drawn) == 3
    assert all(not p.better.startswith("1.") for p in window.draw(100, 0))
    again = Window(2)
    again.restore(json.loads(json.dumps(window.state())))
    assert again.draw(6, 0) == drawn
    assert again.draw(6, 1) != drawn


def test_what_is_learned_is_the_label_in_both_orders(tiny_tokenizer: object) -> None:
    prompt = JudgePrompt(Chat(tiny_tokenizer))
    pair = Pair("math", "t", "verified", ({"role": "user", "content": "q"},), ("correct",), "good", "bad")
    first, second = pairs.both_orders(prompt, [pair], label=2.0, text=0.5)
    decode = prompt.chat.tokenizer.decode
    assert decode(first.ids).endswith("<|assistant|>good<|end|><|assistant|>bad<|end|><|judge|><|A|>")
    assert decode(second.ids).endswith("<|assistant|>bad<|end|><|assistant|>good<|end|><|judge|><|B|>")
    learned = {decode(first.ids[a:b]): weight for a, b, weight in first.spans}
    assert learned == {"<|A|>": 2.0, "good<|end|>": 0.5}
    assert {decode(second.ids[a:b]): w for a, b, w in second.spans} == {"<|B|>": 2.0}
    assert decode(first.ids[: first.shared]).endswith("good<|end|>")
