"""The torch sampler's contract: log-probs equal a full forward pass, rows are independent, nothing is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from k2rl import rng
from k2rl.errors import UserError
from k2rl.protocols import Completion, Request, Sampler
from k2rl.samplers import decoder, llama
from k2rl.samplers.drawing import draw
from k2rl.samplers.prefill import prefill
from k2rl.samplers.torch_sampler import TorchSampler

STOP = frozenset({1})


def requests(count: int, n: int, temperature: float = 1.0, max_new: int = 12, seed: int = 0) -> list[Request]:
    """Prompts of 1 to 30 tokens."""
    draws = np.random.default_rng(seed)
    return [
        Request(
            f"r{i}",
            tuple(draws.integers(20, 300, int(draws.integers(1, 31))).tolist()),
            tuple(rng.key("test", i, k) for k in range(n)),
            int(draws.integers(1, max_new + 1)),
            temperature,
            STOP,
        )
        for i in range(count)
    ]


def run(sampler: TorchSampler, wanted: list[Request]) -> dict[tuple[str, int], Completion]:
    sampler.submit(wanted)
    found: dict[tuple[str, int], Completion] = {}
    for _ in range(10_000):
        for c in sampler.poll():
            assert (c.request_id, c.index) not in found
            found[c.request_id, c.index] = c
        if len(found) == sum(r.n for r in wanted):
            return found
    raise AssertionError("samples were lost")


def full_logprobs(model: Any, request: Request, ids: tuple[int, ...]) -> torch.Tensor:
    tokens = torch.tensor([[*request.prompt_ids, *ids]])
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=tokens).logits[0, len(request.prompt_ids) - 1 : -1]
    table = (logits / (request.temperature or 1.0)).log_softmax(-1)
    return table.gather(-1, torch.tensor(ids)[:, None])[:, 0]


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 1.7])
@pytest.mark.parametrize(("slots", "workers"), [(1, 1), (5, 1), (64, 1), (12, 3)])
def test_logprobs_equal_a_full_forward_pass(tiny_model: Any, temperature: float, slots: int, workers: int) -> None:
    """Ragged prompts; few slots mean that rows are refilled again and again."""
    wanted = requests(6, 3, temperature)
    for (name, _), c in run(TorchSampler(tiny_model, 0, slots, workers=workers), wanted).items():
        request = next(r for r in wanted if r.id == name)
        torch.testing.assert_close(
            torch.tensor(c.logprobs), full_logprobs(tiny_model, request, c.ids), atol=1e-4, rtol=0
        )


def test_long_prompts_keep_their_beginning_when_rows_beside_them_end_at_once(tiny_model: Any) -> None:
    """The rows that are there already have said little: the cache columns in use are fewer than a new prompt needs."""
    tokens = np.random.default_rng(0).integers(20, 300, 90).tolist()
    early, short, long = (
        Request(name, tuple(prompt), tuple(rng.key(name, k) for k in range(4)), new, 1.0, STOP)
        for name, prompt, new in (("early", tokens[:2], 9), ("short", tokens[2:10], 1), ("long", tokens[10:], 9))
    )
    sampler = TorchSampler(tiny_model, 0, 16, workers=1)
    sampler.submit([early])
    sampler.poll()
    sampler.submit([short, long])
    said = [c for _ in range(10) for c in sampler.poll() if c.request_id == "long"]
    assert len(said) == 4
    for c in said:
        torch.testing.assert_close(torch.tensor(c.logprobs), full_logprobs(tiny_model, long, c.ids), atol=1e-4, rtol=0)


def test_a_cache_without_rows_grows_for_longer_prompts(tiny_model: Any) -> None:
    """What was sampled before had short prompts, and all of it has left."""
    sampler = TorchSampler(tiny_model, 0, 4, workers=1)
    tokens = np.random.default_rng(0).integers(20, 300, 200).tolist()
    for count in (3, 200):
        request = Request(f"r{count}", tuple(tokens[:count]), (1, 2), 4, 1.0, STOP)
        for c in run(sampler, [request]).values():
            torch.testing.assert_close(
                torch.tensor(c.logprobs), full_logprobs(tiny_model, request, c.ids), atol=1e-4, rtol=0
            )


def test_a_sample_depends_on_its_key_alone(tiny_model: Any) -> None:
    wanted = requests(6, 3)
    together = run(TorchSampler(tiny_model, 0, 64), wanted)
    narrow = run(TorchSampler(tiny_model, 0, 4), list(reversed(wanted)))
    shared_out = run(TorchSampler(tiny_model, 0, 64, workers=2), wanted)
    assert {k: c.ids for k, c in together.items()} == {k: c.ids for k, c in narrow.items()}
    assert {k: c.ids for k, c in together.items()} == {k: c.ids for k, c in shared_out.items()}


def test_the_last_rows_of_several_decoders_go_on_in_one(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long samples among short ones, so that rows of unlike length meet; with nothing lost or changed."""
    wanted = [
        replace(r, max_new_tokens=4 + 40 * (i % 3 == 0), stop_ids=frozenset()) for i, r in enumerate(requests(12, 4))
    ]
    adopted = []
    adopt = decoder.Decoder.adopt

    def counting(self: decoder.Decoder, other: decoder.Decoder) -> None:
        adopted.append((self.rows, other.rows))
        adopt(self, other)

    monkeypatch.setattr(decoder.Decoder, "adopt", counting)
    found = run(TorchSampler(tiny_model, 0, 40, workers=2), wanted)
    assert adopted
    for (name, _), c in found.items():
        request = next(r for r in wanted if r.id == name)
        expected = full_logprobs(tiny_model, request, c.ids)
        torch.testing.assert_close(torch.tensor(c.logprobs), expected, atol=1e-4, rtol=0)


def test_stop_ids_and_budgets_end_samples(tiny_model: Any) -> None:
    wanted = requests(20, 4, max_new=40)
    finished = run(TorchSampler(tiny_model, 0, 16), wanted)
    budgets = {r.id: r.max_new_tokens for r in wanted}
    for (name, _), c in finished.items():
        assert not STOP.intersection(c.ids[:-1])
        assert (c.finish == "stop") == (c.ids[-1] in STOP)
        assert c.finish == "stop" or len(c.ids) == budgets[name]


def test_greedy_takes_the_most_likely_token(tiny_model: Any) -> None:
    (request,) = requests(1, 1, temperature=0.0)
    (c,) = run(TorchSampler(tiny_model, 0, 4), [request]).values()
    tokens = list(request.prompt_ids)
    for expected in c.ids:
        assert int(tiny_model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()) == expected
        tokens.append(expected)


def test_a_group_is_prefilled_once(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[tuple[int, ...]] = []

    def counting(model: Any, wanted: Any, pad_id: int) -> Any:
        prompts.extend(tuple(p) for p in wanted)
        return prefill(model, wanted, pad_id)

    monkeypatch.setattr(decoder, "prefill", counting)
    wanted = requests(3, 10)
    run(TorchSampler(tiny_model, 0, 4), wanted)
    assert sorted(prompts) == sorted(r.prompt_ids for r in wanted)


def test_aborted_samples_go_on_where_they_were(tiny_model: Any) -> None:
    """Partial + continuation = the uninterrupted sample, ids and log-probs alike."""
    wanted = [r for r in requests(6, 2, max_new=20) if r.max_new_tokens > 4]
    whole = run(TorchSampler(tiny_model, 0, 64), wanted)
    sampler = TorchSampler(tiny_model, 0, 64)
    sampler.submit(wanted)
    early = {(c.request_id, c.index): c for _ in range(3) for c in sampler.poll()}
    partials = sampler.abort()
    assert not sampler.poll()
    for p in partials:
        request = next(r for r in wanted if r.id == p.request_id)
        rest = Request(
            "rest",
            (*request.prompt_ids, *p.ids),
            (request.keys[p.index],),
            request.max_new_tokens - len(p.ids),
            request.temperature,
            STOP,
            first_position=len(p.ids),
        )
        (c,) = run(TorchSampler(tiny_model, 0, 4), [rest]).values()
        expected = whole[p.request_id, p.index]
        assert p.ids + c.ids == expected.ids
        np.testing.assert_allclose(p.logprobs + c.logprobs, expected.logprobs, atol=1e-4)
    assert len(early) + len(partials) == sum(r.n for r in wanted)


def test_abort_by_id_leaves_the_others_alone(tiny_model: Any) -> None:
    wanted = requests(5, 3)
    whole = run(TorchSampler(tiny_model, 0, 4), wanted)
    sampler = TorchSampler(tiny_model, 0, 4)
    sampler.submit(wanted)
    found = {(c.request_id, c.index): c.ids for c in sampler.poll()}
    partials = sampler.abort(["r1", "r3"])
    assert {p.request_id for p in partials} <= {"r1", "r3"}
    for _ in range(200):
        found |= {(c.request_id, c.index): c.ids for c in sampler.poll()}
    assert len(found) + len(partials) == 15
    assert all(found[k] == whole[k].ids for k in found)


def test_score_labels_equal_a_full_forward_pass(tiny_model: Any) -> None:
    prompts = [r.prompt_ids for r in requests(9, 1)]
    scores = TorchSampler(tiny_model, 0, 4).score_labels(prompts, [30, 40])
    assert scores.shape == (9, 2)
    for prompt, row in zip(prompts, scores, strict=True):
        logits = tiny_model(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        np.testing.assert_allclose(row, logits[[30, 40]].detach().numpy(), atol=1e-4)


def test_publish_copies_checks_and_stamps(tiny_model: Any) -> None:
    sampler = TorchSampler(tiny_model, 0, 4)
    weights = {n: p.detach() + 0.5 for n, p in tiny_model.named_parameters()}
    sampler.publish(weights.items(), 7)
    assert all(torch.equal(p, weights[n]) for n, p in tiny_model.named_parameters())
    assert next(iter(run(sampler, requests(1, 1)).values())).version == 7
    with pytest.raises(ValueError, match=r"norm\.weight"):
        sampler.publish([("model.norm.weight", torch.zeros(3))], 8)
    sampler.submit(requests(1, 1))
    with pytest.raises(ValueError, match="under way"):
        sampler.publish([], 8)
    sampler.close()
    assert isinstance(sampler, Sampler)


def test_draw_follows_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0]]).expand(20_000, 4)
    uniforms = rng.uniforms(np.arange(20_000, dtype=np.uint64), np.zeros(20_000, dtype=np.uint64))
    tokens, logprobs = draw(logits, np.full(20_000, 0.8, np.float32), uniforms)
    expected = (logits[0] / 0.8).softmax(-1)
    shares = np.bincount(tokens, minlength=4) / 20_000
    np.testing.assert_allclose(shares, expected.numpy(), atol=0.015)
    np.testing.assert_allclose(np.exp(logprobs[:100]), expected[tokens[:100]].numpy(), atol=1e-6)


@pytest.mark.parametrize("vocabulary", [3, 128, 1000])
def test_draw_inverts_the_cumulative_distribution(vocabulary: int) -> None:
    """Also across the blocks in which it is searched."""
    logits = torch.randn(500, vocabulary, generator=torch.Generator().manual_seed(0)) * 3
    uniforms = rng.uniforms(np.arange(500, dtype=np.uint64), np.ones(500, dtype=np.uint64))
    tokens, logprobs = draw(logits, np.full(500, 1.3, np.float32), uniforms)
    table = (logits.double() / 1.3).softmax(-1)
    above = torch.from_numpy(tokens)[:, None]
    reached = table.cumsum(-1).gather(-1, above)[:, 0].numpy()
    mass = table.gather(-1, above)[:, 0].numpy()
    assert (reached - mass - 1e-6 <= uniforms).all()
    assert (uniforms <= reached + 1e-6).all()
    np.testing.assert_allclose(logprobs, np.log(mass), atol=1e-5)


def test_drawing_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(0)) * 3
    uniforms = rng.uniforms(np.arange(50, dtype=np.uint64), np.zeros(50, dtype=np.uint64))
    temperatures = np.array([0.0, 0.5, 1.0, 1.5, 1.0] * 10, dtype=np.float32)
    whole = draw(logits, temperatures, uniforms)
    monkeypatch.setattr("k2rl.samplers.drawing.AT_ONCE", {"cpu": 7 * 300})
    parts = draw(logits, temperatures, uniforms)
    assert np.array_equal(whole[0], parts[0])
    assert np.array_equal(whole[1], parts[1])


def test_draw_never_picks_an_impossible_token() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf], [0.0, -torch.inf, -torch.inf]])
    tokens, _ = draw(logits, np.ones(2, np.float32), np.array([1 - 2**-53, 1 - 2**-53]))
    assert tokens.tolist() == [1, 0]


def test_models_with_other_attention_are_refused(tiny_model: Any) -> None:
    tiny_model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(UserError, match="sliding_attention"):
        TorchSampler(tiny_model, 0, 4)


def test_a_grouped_query_model_with_tied_weights(shared_data: Path) -> None:
    from k2rl.models import load_policy
    from k2rl.recipe import ModelConfig

    policy = load_policy(ModelConfig(path=str(shared_data / "stories260k")))
    prompt = policy.chat.prompt([{"role": "user", "content": "Once upon a time"}])
    request = Request("s", prompt, tuple(rng.key(k) for k in range(4)), 20, 1.0, policy.chat.stop_ids)
    for c in run(TorchSampler(policy.model, 0, 3), [request]).values():
        expected = full_logprobs(policy.model, request, c.ids)
        torch.testing.assert_close(torch.tensor(c.logprobs), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Qwen2"])
def test_llama_types_are_decoded_as_by_the_model_itself(kind: str) -> None:
    """Grouped query heads, biases, scaled positions; head size other than hidden size / heads."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=320,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
        sliding_window=None,
    )
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    assert llama.known(model)
    wanted = requests(6, 3, 0.8)
    for (name, _), c in run(TorchSampler(model, 0, 5), wanted).items():
        expected = full_logprobs(model, next(r for r in wanted if r.id == name), c.ids)
        torch.testing.assert_close(torch.tensor(c.logprobs), expected, atol=1e-4, rtol=0)


def test_adapters_and_other_precisions_are_decoded_by_the_model(tiny_model: Any) -> None:
    wanted = requests(6, 2)
    fast = run(TorchSampler(tiny_model, 0, 5), wanted)
    layer = tiny_model.model.layers[1].self_attn

    class Twice(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    layer.o_proj.__class__ = Twice
    assert not llama.known(tiny_model)
    slow = run(TorchSampler(tiny_model, 0, 5), wanted)
    assert any(slow[key].ids != c.ids for key, c in fast.items())
    for (name, _), c in slow.items():
        expected = full_logprobs(tiny_model, next(r for r in wanted if r.id == name), c.ids)
        torch.testing.assert_close(torch.tensor(c.logprobs), expected, atol=1e-4, rtol=0)
    layer.o_proj.__class__ = torch.nn.Linear
    assert llama.known(tiny_model)
    assert not llama.known(tiny_model.bfloat16())


def test_eager_attention_sees_no_padding_either(tiny_model: Any) -> None:
    tiny_model.set_attn_implementation("eager")
    wanted = requests(6, 2)
    for (name, _), c in run(TorchSampler(tiny_model, 0, 5), wanted).items():
        expected = full_logprobs(tiny_model, next(r for r in wanted if r.id == name), c.ids)
        torch.testing.assert_close(torch.tensor(c.logprobs), expected, atol=1e-4, rtol=0)


def test_a_sliding_window_without_layer_types_is_refused(tiny_model: Any) -> None:
    tiny_model.config.sliding_window = 16
    tiny_model.config.layer_types = None
    with pytest.raises(UserError, match="a sliding window of 16"):
        TorchSampler(tiny_model, 0, 4)
