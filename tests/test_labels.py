"""Labels scored with shared beginnings equal a full forward pass of each prompt, and compute fewer tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from k2rl.samplers import labels
from k2rl.samplers.prefill import prefill
from k2rl.samplers.torch_sampler import TorchSampler

Ids = tuple[int, ...]
LABELS = [30, 40, 50]


def words(draws: np.random.Generator, low: int, high: int) -> Ids:
    return tuple(draws.integers(20, 300, int(draws.integers(low, high))).tolist())


def comparisons(
    count: int, seed: int = 0, prefix: int = 20, shortest: int = 1, response: int = 30, question: int = 2
) -> list[Ids]:
    """All ordered pairs of one group's responses, as a judge asks for them."""
    draws = np.random.default_rng(seed)
    begin, end = words(draws, prefix, prefix + 1), words(draws, question, question + 1)
    responses = [words(draws, shortest, response) for _ in range(count)]
    return [begin + a + b + end for i, a in enumerate(responses) for j, b in enumerate(responses) if i != j]


def in_full(model: Any, prompts: list[Ids]) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        rows = [model(input_ids=torch.tensor([p])).logits[0, -1].log_softmax(-1)[LABELS] for p in prompts]
    return torch.stack(rows).numpy()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every pass."""
    tokens: list[int] = []

    def counting(*args: Any, **kwargs: Any) -> Any:
        tokens.append(sum(map(len, kwargs["prompts"])))
        return prefill(*args, **kwargs)

    monkeypatch.setattr(labels, "prefill", counting)
    return tokens


def agree(model: Any, prompts: list[Ids], slots: int = 64, workers: int = 1) -> None:
    sampler = TorchSampler(model, 0, slots, workers=workers)
    scores = sampler.score_labels(prompts, LABELS)
    sampler.close()
    assert scores.shape == (len(prompts), len(LABELS))
    np.testing.assert_allclose(scores, in_full(model, prompts), atol=1e-4)


def test_all_pairs_share_the_prefix_and_the_first_response(tiny_model: Any, computed: list[int]) -> None:
    prompts = comparisons(9)
    agree(tiny_model, prompts)
    assert sum(computed) < 0.6 * sum(map(len, prompts))


def test_several_groups_share_a_pass_a_level(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch, computed: list[int]
) -> None:
    """Instructions, tasks, first responses, second responses: four passes, whatever the number of groups."""
    monkeypatch.setitem(labels._COLUMNS, "cpu", 100_000)
    draws = np.random.default_rng(3)
    rules = words(draws, 100, 101)
    prompts = [rules + p for seed in range(5) for p in comparisons(5, seed, shortest=10)]
    agree(tiny_model, prompts, slots=512)
    assert len(computed) == 4, computed


def test_nothing_shared_is_one_plain_pass(tiny_model: Any, computed: list[int]) -> None:
    draws = np.random.default_rng(0)
    prompts = [words(draws, 1, 60) for _ in range(30)]
    agree(tiny_model, prompts)
    assert computed == [sum(map(len, prompts))]


def test_too_little_shared_is_not_worth_a_pass(tiny_model: Any, computed: list[int]) -> None:
    prompts = [(7, 8, 9, *p) for p in comparisons(2, prefix=3)]
    agree(tiny_model, prompts)
    assert len(computed) == 1


@pytest.mark.parametrize("seed", range(3))
def test_prompts_of_few_words_share_in_every_way(tiny_model: Any, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Any saving counts here: many levels, prompts that begin others, equal prompts, suffixes of one token."""
    monkeypatch.setattr(labels, "_PASS", 1)
    monkeypatch.setattr(labels, "_EDGE", 1)
    monkeypatch.setattr(labels, "_LEVELS", 4)
    draws = np.random.default_rng(seed)
    prompts = [tuple(draws.integers(20, 22, int(draws.integers(1, 12))).tolist()) for _ in range(60)]
    agree(tiny_model, [*prompts, *prompts[:5]])


def test_equal_prompts_are_computed_once(tiny_model: Any, computed: list[int]) -> None:
    prompt = words(np.random.default_rng(1), 30, 31)
    agree(tiny_model, [prompt] * 40)
    assert sum(computed) == 30


def test_a_long_chain_of_beginnings(tiny_model: Any) -> None:
    whole = words(np.random.default_rng(2), 120, 121)
    agree(tiny_model, [whole[:n] for n in range(1, 121)])


def test_a_last_token_of_its_own(tiny_model: Any, computed: list[int]) -> None:
    begin = words(np.random.default_rng(4), 60, 61)
    agree(tiny_model, [begin, *((*begin, n) for n in range(20, 60))])
    assert sum(computed) == 60 + 40 + 60, "the beginning, the others' own tokens, and the prompt that is the beginning"


@pytest.mark.parametrize("workers", [1, 3])
def test_chunks_and_threads_change_nothing(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch, computed: list[int], workers: int
) -> None:
    monkeypatch.setitem(labels._COLUMNS, "cpu", 300)
    agree(tiny_model, comparisons(6) + comparisons(5, seed=1), slots=7, workers=workers)
    assert len(computed) > 10


def test_no_prompts_no_scores(tiny_model: Any) -> None:
    assert TorchSampler(tiny_model, 0, 4).score_labels([], LABELS).shape == (0, 3)


@pytest.mark.parametrize(
    ("config", "more"),
    [
        (transformers.Qwen2Config, {"num_key_value_heads": 2}),
        (transformers.Qwen3Config, {"num_key_value_heads": 2, "head_dim": 16}),
        (transformers.GPT2Config, {}),
    ],
)
def test_other_architectures(config: Any, more: dict[str, int]) -> None:
    """Grouped key heads, normalised queries, learnt positions."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 320, **more}
    if config is not transformers.GPT2Config:
        sizes |= {"intermediate_size": 64}
    model = transformers.AutoModelForCausalLM.from_config(config(**sizes, pad_token_id=0))
    agree(model.eval(), comparisons(7))
