"""Models that compare responses: a causal LM in the judging role, or a scalar reward model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from transformers import AutoModelForSequenceClassification

from k2rl import rubrics
from k2rl.chat import Chat
from k2rl.critic.judge import Judge
from k2rl.critic.prompt import Comparison, JudgePrompt
from k2rl.critic.records import Judgement
from k2rl.errors import UserError
from k2rl.models import context_length, describe, dtype_named, load_policy, loading, pick_device
from k2rl.preferences import Contest, Row
from k2rl.progress import bar
from k2rl.recipe import ModelConfig
from k2rl.samplers.torch_sampler import TorchSampler
from k2rl.types import Message

_BATCH_TOKENS = 8192
"""Of one forward pass, padding included."""
_BATCH_CHARACTERS = 24_000
"""The same for what is not encoded yet; of each comparison both orders are in a batch."""
_CRITERIA_SHARE = 0.25
"""Criteria that would take more of the context than this are told in their short form."""


@dataclass(frozen=True)
class Asking:
    """How a causal LM is asked: by which rubrics (names, files or texts; none: the core ones), and whether it may first
    write up to so many tokens of an argument."""

    rubrics: tuple[str, ...] = ()
    reasoning_tokens: int = 0


_PLAINLY = Asking()


def load(
    config: ModelConfig, kind: Literal["auto", "judge", "scalar"] = "auto", asking: Asking = _PLAINLY, cut: bool = False
) -> CausalJudge | ScalarJudge:
    """The judge at a path; for `auto` a sequence classifier is a scalar reward model, and any other a causal LM.

    `cut` shortens the responses of a row that is too long for the model, instead of leaving it without a verdict.

    Raises:
        UserError: the model can't be loaded as that, or a scalar one is asked what it can't be.
    """
    if kind == "auto":
        architectures = getattr(describe(config).config, "architectures", None) or ()
        kind = "scalar" if any(name.endswith("ForSequenceClassification") for name in architectures) else "judge"
    if kind == "judge":
        return CausalJudge.load(config, asking, cut)
    if asking != _PLAINLY:
        raise UserError(f"{config.path} is a scalar reward model: --rubric and --reasoning-tokens are for a causal LM")
    return ScalarJudge.load(config, cut)


class CausalJudge:
    """A causal LM in the judging role, told the same criteria for every pair."""

    kind = "judge"

    def __init__(self, judge: Judge, criteria: tuple[str, ...], cut: bool = False) -> None:
        self.judge, self.criteria, self.cut = judge, criteria, cut
        self.shortened: frozenset[str] = frozenset()

    @classmethod
    def load(cls, config: ModelConfig, asking: Asking, cut: bool = False) -> CausalJudge:
        """Raises `UserError` for a model that can't be loaded, and rubrics that are none."""
        told = rubrics.resolve(asking.rubrics or ("core",))
        policy = load_policy(config)
        prompt = JudgePrompt(policy.chat, reasoning=asking.reasoning_tokens > 0)
        judge = Judge(
            prompt,
            TorchSampler(policy.model, policy.chat.pad_id),
            context=policy.context,
            reasoning_tokens=asking.reasoning_tokens,
        )
        full = rubrics.criteria(told)
        long = len(policy.chat.encode_untrusted("\n".join(full))) > _CRITERIA_SHARE * policy.context
        return cls(judge, rubrics.criteria(told, short=True) if prompt.short or long else full, cut)

    def compare(self, asked: Sequence[Contest], quiet: bool = False) -> list[Judgement | None]:
        """Both orders of each; None where it is too long for the model, or its verdict can't be read."""
        found: list[Judgement | None] = [None] * len(asked)
        rows, self.shortened = _fitted(asked, self._fits, self.cut)
        asked = [replace(contest, row=rows[contest.row.place]) for contest in asked]
        sizes = [len(contest.row.prompt) + sum(map(len, contest.responses)) for contest in asked]
        with bar("judging", quiet) as progress:
            done = 0
            for batch in _batches(sizes, _BATCH_CHARACTERS):
                comparisons = [Comparison(asked[i].row.messages, self.criteria, *asked[i].responses) for i in batch]
                for i, judgement in zip(batch, self.judge.judge(comparisons), strict=True):
                    found[i] = judgement
                done += len(batch)
                progress(done, len(asked))
        return found

    def _fits(self, row: Row) -> bool:
        """Whether the two longest responses do."""
        longest = sorted(row.responses, key=len)[-2:]
        ids = self.judge.prompt.ask(Comparison(row.messages, self.criteria, longest[0], longest[1])).ids
        return len(ids) <= self.judge.context - max(self.judge.reasoning_tokens, 1)


class ScalarJudge:
    """A sequence classifier of one label, which scores a response by itself.

    P(A is better) is the logistic function of the difference of two scores (Bradley-Terry), whatever the order.

    Args:
        model: it reads its score off the last token that is not its pad token, so rows are padded on the right.
        context: the most tokens it takes.
    """

    kind = "scalar"

    def __init__(self, model: Any, chat: Chat, context: int, cut: bool = False) -> None:
        self.model, self.chat, self.context, self.cut = model, chat, context, cut
        self.shortened: frozenset[str] = frozenset()
        self._pad_id: int | None = model.config.get_text_config().pad_token_id

    @classmethod
    def load(cls, config: ModelConfig, cut: bool = False) -> ScalarJudge:
        """The reward model at a path.

        Raises:
            UserError: none that can be loaded from safetensors, several labels, a head without trained weights, or a
                tokenizer without a chat template.
        """
        found = describe(config)
        if found.config.num_labels != 1:
            raise UserError(
                f"--model {config.path}: a scalar reward model has one label, not {found.config.num_labels}; "
                "--kind judge asks a causal LM for its verdicts"
            )
        if not found.chat.has_template:
            raise UserError(f"--model {config.path}: a scalar reward model needs a chat template, and it has none")
        with loading(config):
            model, info = AutoModelForSequenceClassification.from_pretrained(
                found.path,
                dtype=dtype_named(config.dtype),
                trust_remote_code=config.trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
            )
        if untrained := sorted(info["missing_keys"]):
            raise UserError(f"--model {config.path}: no weights for {', '.join(untrained)}: it is no reward model")
        return cls(model.to(pick_device(config.device)).eval(), found.chat, context_length(model.config), cut)

    def compare(self, asked: Sequence[Contest], quiet: bool = False) -> list[Judgement | None]:
        """From the scores of all responses, each scored once; None where one is too long for the model."""
        rows, self.shortened = _fitted(asked, lambda row: max(map(len, self._encoded(row))) <= self.context, self.cut)
        keys = [(place, n) for place, row in rows.items() for n in range(len(row.responses))]
        encoded = [ids for row in rows.values() for ids in self._encoded(row)]
        score = dict(zip(keys, self.scores(encoded, quiet), strict=True))
        pairs = [(score[c.row.place, c.a], score[c.row.place, c.b]) for c in asked]
        return [None if a is None or b is None else preference(a, b) for a, b in pairs]

    def _encoded(self, row: Row) -> list[tuple[int, ...]]:
        """The ids of the conversation that each response ends."""
        turns: list[Message] = [{"role": "assistant", "content": response} for response in row.responses]
        return [self.chat.conversation([*row.messages, turn], generate=False)[0] for turn in turns]

    def scores(self, rows: Sequence[Sequence[int]], quiet: bool = False) -> list[float | None]:
        """The score of each finished conversation, given as ids; None where it is longer than the context."""
        fits = [i for i, row in enumerate(rows) if len(row) <= self.context]
        found: list[float | None] = [None] * len(rows)
        with bar("scoring", quiet) as progress:
            done = len(rows) - len(fits)
            # One by one where the model knows no padding.
            for batch in _batches([len(rows[i]) for i in fits], 0 if self._pad_id is None else _BATCH_TOKENS):
                for i, score in zip(batch, self._forward([rows[fits[i]] for i in batch]), strict=True):
                    found[fits[i]] = score
                done += len(batch)
                progress(done, len(rows))
        return found

    @torch.inference_mode()
    def _forward(self, rows: Sequence[Sequence[int]]) -> list[float]:
        longest, device = max(map(len, rows)), self.model.device
        ids = [[*row, *[self._pad_id or 0] * (longest - len(row))] for row in rows]
        mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        logits_B_1 = self.model(
            input_ids=torch.tensor(ids, device=device), attention_mask=torch.tensor(mask, device=device)
        ).logits
        scores: list[float] = logits_B_1[:, 0].double().tolist()
        return scores


def preference(score_a: float, score_b: float) -> Judgement:
    """The judgement of two scores, the same in both orders."""
    margin = score_a - score_b
    p = 1 / (1 + math.exp(-margin)) if margin >= 0 else math.exp(margin) / (1 + math.exp(margin))
    return Judgement(p, p)


def _fitted(asked: Sequence[Contest], fits: Callable[[Row], bool], cut: bool) -> tuple[dict[str, Row], frozenset[str]]:
    """The rows by their places, and the places of those whose responses were cut.

    What is cut off is what lies beyond the most characters with which the row fits, the same for all of its responses.
    """
    rows = {contest.row.place: contest.row for contest in asked}
    if not cut:
        return rows, frozenset()
    shortened = {place: _cut(row, fits) for place, row in rows.items() if not fits(row)}
    return rows | shortened, frozenset(place for place, row in shortened.items() if row != rows[place])


def _cut(row: Row, fits: Callable[[Row], bool]) -> Row:
    """The row with shorter responses; as it was where even their first characters would not fit."""
    low, high = 0, max(map(len, row.responses))  # fits, does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(_cut_to(row, middle)) else (low, middle)
    return _cut_to(row, low) if low else row


def _cut_to(row: Row, characters: int) -> Row:
    return replace(row, responses=tuple(response[:characters] for response in row.responses))


def _batches(sizes: Sequence[int], room: int) -> Iterator[list[int]]:
    """Numbers of items, by growing size, as many together as fit when each takes the room of the largest; at least
    one."""
    batch: list[int] = []
    for i in sorted(range(len(sizes)), key=sizes.__getitem__):
        if batch and (len(batch) + 1) * sizes[i] > room:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
