"""`writing`: what is asked, what demonstrations say, and how texts are spoilt."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import islice

import pytest
from k2rl_envs.short_texts import ENDINGS, FLAT, NOUNS, TONES
from k2rl_envs.writing_env import STYLES, WritingEnv, sentences

from k2rl import rng
from k2rl.errors import UserError
from k2rl.types import Status, Task

ENV = WritingEnv(words=[1, 2])
TASKS = list(islice(ENV.tasks("train", 0), 300))


def keeps_to(task: Task, text: str) -> bool:
    """Whether a text has everything that was asked for, and nothing of another tone."""
    asked, said = task.reference, set(re.findall("[a-z]+", text.lower()))
    other = {w for name, tone in TONES.items() if name != asked["tone"] for w in (*tone.adjectives, *tone.verbs)}
    own = {*TONES[asked["tone"]].adjectives, *TONES[asked["tone"]].verbs}
    return (
        set(asked["words"]) <= said
        and bool(own & said)
        and not (other | {*FLAT.adjectives, *FLAT.verbs}) & said
        and len(sentences(text)) == asked["sentences"]
        and text.endswith(asked["ending"])
    )


def test_tasks_ask_for_words_tone_and_form() -> None:
    assert {t.reference["sentences"] for t in TASKS} == {1, 2}
    assert {t.reference["ending"] for t in TASKS} == set(ENDINGS)
    assert {t.reference["tone"] for t in TASKS} == set(TONES)
    assert {len(t.reference["words"]) for t in TASKS} == {1, 2}
    assert all(re.fullmatch(r"[12] \w+ sentences? about [a-z, ]+; end with [.?!]", str(t.prompt)) for t in TASKS)
    test = {frozenset(t.reference["words"]) for t in islice(ENV.tasks("test", 1), 300)}
    assert not test & {frozenset(t.reference["words"]) for t in TASKS}


def test_words_of_one_kind_only() -> None:
    tones = [{*t.adjectives, *t.verbs} for t in (*TONES.values(), FLAT)]
    assert sum(map(len, tones)) == len(set().union(*tones))
    assert not set(NOUNS) & set().union(*tones)


def test_a_gold_text_keeps_to_what_was_asked() -> None:
    for task in TASKS:
        gold, other = ENV.gold(task), ENV.sample_gold(task, rng.generator(1, task.id))
        assert keeps_to(task, gold), (task.prompt, gold)
        assert keeps_to(task, other), (task.prompt, other)
        assert gold == ENV.gold(task)
        assert ENV.well_formed(gold)
    differs = [ENV.gold(t) != ENV.sample_gold(t, rng.generator(1, t.id)) for t in TASKS]
    assert sum(differs) > 0.8 * len(TASKS)


def test_styles_leave_out_what_they_say() -> None:
    for style in STYLES:
        env = WritingEnv(words=[2], styles={style: 1.0})
        kept = [keeps_to(t, env.gold(t)) for t in islice(env.tasks("train", 0), 100)]
        assert sum(kept) == (100 if style == "full" else 0), style


def test_each_corruption_spoils_what_it_is_named_for() -> None:
    spoilt = Counter[str]()
    for task in TASKS:
        gold = ENV.gold(task)
        for kind, worse in ENV.corrupt(task, gold, rng.generator(2, task.id)).items():
            assert worse != gold
            assert ENV.well_formed(worse), (kind, worse)
            assert keeps_to(task, worse) == (kind == "shuffled"), (kind, task.prompt, worse)
            if kind == "shuffled":
                assert Counter(re.findall("[a-z]+", worse.lower())) == Counter(re.findall("[a-z]+", gold.lower()))
            spoilt[kind] += 1
    assert spoilt.keys() == {"other_word", "other_tone", "other_ending", "other_count", "shuffled"}
    assert min(spoilt.values()) > 200


def test_no_rule_of_length_tells_the_better_text() -> None:
    longer = defaultdict(list)
    for task in TASKS:
        gold = ENV.gold(task)
        for kind, worse in ENV.corrupt(task, gold, rng.generator(3, task.id)).items():
            longer[kind].append((len(gold) > len(worse)) + 0.5 * (len(gold) == len(worse)))
    assert all(0.35 < sum(own) / len(own) < 0.65 for own in longer.values()), longer


@pytest.mark.parametrize("text", ["", "fox", "The fox", "?!", "  two  spaces. ", "The fox sang", "Ein Füchslein. 🦊"])
def test_any_text_can_be_asked_about(text: str) -> None:
    task = TASKS[0]
    assert ENV.verify(task, text).status is (Status.PENDING if re.search("[A-Za-z]", text) else Status.MALFORMED)
    made = ENV.corrupt(task, text, rng.generator(4))
    assert text not in made.values()
    assert "other_ending" not in made or text.endswith(task.reference["ending"])


def test_wrong_arguments() -> None:
    with pytest.raises(UserError, match=r"words is 3: allowed are 1, 2"):
        WritingEnv(words=3)
    with pytest.raises(UserError, match=r"unknown style 'ful' \(did you mean 'full'\?\)"):
        WritingEnv(styles={"ful": 1.0})
