"""The trainer and its batches: any split into micro-batches gives the same gradient; state survives a round trip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from k2rl.batch import Batch, Example, batches, micro_batches, slices, text_batch
from k2rl.errors import RunError, UserError
from k2rl.losses import Objective
from k2rl.losses.grpo import Grpo
from k2rl.losses.gspo import Gspo
from k2rl.losses.k2 import K2
from k2rl.losses.k2_5 import K2_5
from k2rl.recipe import OptimConfig
from k2rl.schedules import Schedule
from k2rl.trainers.gradients import Gradients
from k2rl.trainers.logprobs import TokenLogProbs
from k2rl.trainers.packing import pack
from k2rl.trainers.torch_trainer import TorchTrainer
from k2rl.types import End, Rollout, ScoredGroup, Segment, Task, Verdict


def rollout(seed: int, length: int, turns: int = 1, temperature: float = 1.0) -> Rollout:
    draw = np.random.default_rng(seed)
    segments = []
    for turn in range(turns):
        if turn:
            segments.append(Segment("env", tuple(draw.integers(20, 300, 3).tolist())))
        ids = tuple(draw.integers(20, 300, length).tolist())
        segments.append(Segment("policy", ids, tuple((-draw.random(length)).tolist()), temperature))
    prompt = tuple(draw.integers(20, 300, int(draw.integers(2, 9))).tolist())
    return Rollout(Task("p", env="e"), 0, prompt, tuple(segments), End.STOP, (Verdict.of(True),))


def groups() -> list[ScoredGroup]:
    return [
        ScoredGroup(
            Task(f"p{g}", env="e"),
            tuple(rollout(10 * g + k, 3 + 2 * k, turns=1 + g % 2, temperature=0.7 + 0.3 * k) for k in range(3)),
            (1.0, 0.0, 0.5),
            (0.5, -0.5, 0.0),
        )
        for g in range(3)
    ]


def one_batch(goal: Objective, with_ptx: bool = True) -> Batch:
    examples = [Example(tuple(range(20, 20 + n)), 2) for n in (5, 9, 4)]
    text = text_batch(examples, 0.3, 0) if with_ptx else None
    (batch,) = batches(groups(), goal, 1, [text], pad_id=0)
    return batch


def gradients(
    model: Any, batch: Batch, micro_tokens: int, goal: Objective, workers: int = 1
) -> dict[str, torch.Tensor]:
    trainer = TorchTrainer(model, goal, OptimConfig(grad_clip=0.0), micro_tokens, workers)
    captured: dict[str, torch.Tensor] = {}
    original = trainer.optimizer.update

    def update(lr: float) -> float:
        captured.update({n: p.grad.clone() for n, p in model.named_parameters()})
        return original(0.0)

    trainer.optimizer.update = update  # type: ignore[method-assign]
    trainer.step(batch, lr=0.0)
    return captured


@pytest.mark.parametrize("goal", [K2(0.1), Grpo(), Gspo(), K2_5()])
@pytest.mark.parametrize("micro_tokens", [1, 30, 64, 100])
def test_any_split_into_micro_batches_gives_the_same_gradient(
    tiny_model: Any, micro_tokens: int, goal: Objective
) -> None:
    batch = one_batch(goal)
    whole = gradients(tiny_model, batch, 100_000, goal)
    split = gradients(tiny_model, batch, micro_tokens, goal)
    for name, grad in whole.items():
        torch.testing.assert_close(split[name], grad, atol=2e-6, rtol=2e-4, msg=name)


def test_workers_change_nothing_but_the_time(tiny_model: Any) -> None:
    """Bit for bit, on one thread each: gradients are added in the micro-batches' order, whoever is done first."""
    batch = one_batch(K2(0.1))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = gradients(tiny_model, batch, 30, K2(0.1))
    torch.set_num_threads(threads)
    for _ in range(5):
        together = gradients(tiny_model, batch, 30, K2(0.1), workers=3)
        assert all(torch.equal(together[name], grad) for name, grad in alone.items())


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("limit", [1, 40, 75, 1000])
def test_micro_batches_hold_every_row_once_within_the_limit(packed: bool, limit: int) -> None:
    batch = shared_batch()
    parts = list(micro_batches(batch, limit, packed))
    rows = sorted(tuple(row[:n]) for p in parts for row, n in zip(p.tokens_B_L.tolist(), p.lengths_B, strict=True))
    every = zip(batch.tokens_B_L.tolist(), batch.lengths_B, strict=True)
    assert rows == sorted(tuple(row[:n]) for row, n in every)
    for p in parts:
        layout = pack(p.tokens_B_L, p.lengths_B, p.prompts_B, p.prompt_lengths_B)
        assert (layout.tokens_M if packed else p.tokens_B_L).numel() <= limit or len(p.tokens_B_L) == 1


def shared_batch() -> Batch:
    """Two prompts with four responses each, of which two make two turns, and one prompt alone."""
    rollouts = [rollout(k, 3 + 4 * k, turns=1 + k % 2, temperature=0.7 + 0.1 * k) for k in range(9)]
    prompts = [tuple(range(30, 36)), tuple(range(40, 51)), (60, 61)]
    mine = [replace(r, prompt_ids=prompts[k % 2 if k < 8 else 2]) for k, r in enumerate(rollouts)]
    group = ScoredGroup(Task("p", env="e"), tuple(mine), (0.0,) * 9, tuple((k - 4) / 4 for k in range(9)))
    (batch,) = batches([group], K2(), 1, [None], pad_id=0)
    return batch


def small(config: type, **more: Any) -> Any:
    """A random model of an architecture, with opinionated weights and grouped queries where it has them."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    model = AutoModelForCausalLM.from_config(
        config(vocab_size=320, intermediate_size=48, **sizes, **ids, **more)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


ARCHITECTURES: list[tuple[type, dict[str, Any], bool]] = [
    (LlamaConfig, {}, True),
    (LlamaConfig, {"tie_word_embeddings": True}, True),
    (Qwen2Config, {}, True),
    (Qwen3Config, {"head_dim": 16}, True),
    (Phi3Config, {}, True),
    (Olmo2Config, {}, True),
    (MistralConfig, {"sliding_window": None}, True),
    (MistralConfig, {"sliding_window": 8}, False),
    (CohereConfig, {"logit_scale": 0.5}, False),
    (GraniteConfig, {"logits_scaling": 4.0}, False),
]


@pytest.mark.parametrize(("config", "more", "packs"), ARCHITECTURES)
def test_packed_rows_have_the_log_probs_and_gradients_of_padded_ones(
    config: type, more: dict[str, Any], packs: bool
) -> None:
    model, batch = small(config, **more), shared_batch()
    logprobs = TokenLogProbs(model)
    assert logprobs.packed == packs
    weights = torch.linspace(-1, 1, batch.mask_B_L.numel()).view(batch.mask_B_L.shape)
    found = []
    for packed in (packs, False):
        logprobs.packed = packed
        model.zero_grad()
        values_B_L = logprobs(batch)
        (values_B_L * weights).sum().backward()  # type: ignore[no-untyped-call]
        found.append((values_B_L.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}))
    torch.testing.assert_close(found[0][0], found[1][0], atol=2e-5, rtol=1e-4)
    for name, grad in found[1][1].items():
        torch.testing.assert_close(found[0][1][name], grad, atol=1e-5 * float(grad.abs().max()) + 1e-7, rtol=1e-3)


def test_chunks_of_the_vocabulary_change_nothing(tiny_model: Any) -> None:
    batch, logprobs = shared_batch(), TokenLogProbs(tiny_model)
    found = []
    for chunk in (1 << 22, 700):
        logprobs.chunk = chunk
        tiny_model.zero_grad()
        values_B_L = logprobs(batch)
        values_B_L.square().sum().backward()  # type: ignore[no-untyped-call]
        found.append((values_B_L.detach(), {n: p.grad.clone() for n, p in tiny_model.named_parameters()}))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-6, rtol=1e-6)
    for name, grad in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], grad, atol=1e-5 * float(grad.abs().max()) + 1e-7, rtol=1e-3)


def test_a_packed_row_holds_a_shared_prompt_once() -> None:
    (part,) = micro_batches(shared_batch(), 10_000)
    layout = pack(part.tokens_B_L, part.lengths_B, part.prompts_B, part.prompt_lengths_B)
    own = int((part.lengths_B - part.prompt_lengths_B).sum())
    assert len(layout.tokens_M) == own + 6 + 11 + 2
    for b, n in enumerate(part.lengths_B.tolist()):
        places = layout.index_B_L[b, :n]
        assert layout.tokens_M[places].tolist() == part.tokens_B_L[b, :n].tolist()
        assert layout.positions_M[places].tolist() == list(range(n))


def test_masks_cover_policy_tokens_only() -> None:
    batch = one_batch(K2())
    rollouts = [r for g in groups() for r in g.rollouts]
    assert [int(n) for n in batch.mask_B_L.sum(-1)] == [r.policy_tokens for r in rollouts]
    for b, r in enumerate(rollouts):
        at = len(r.prompt_ids)
        assert not batch.mask_B_L[b, :at].any()
        for s in r.segments:
            covered = batch.mask_B_L[b, at : at + len(s.ids)]
            assert covered.all() if s.source == "policy" else not covered.any()
            at += len(s.ids)


def test_mini_batches_are_whole_groups_and_share_all_of_them() -> None:
    parts = list(batches(groups(), K2(), 2, [None, None], 0))
    assert [len(b.tokens_B_L) for b in parts] == [6, 3]
    assert [b.first_of_iteration for b in parts] == [True, False]
    assert float(parts[0].coefficients_B.sum()) == pytest.approx(1.0)


def test_token_logprobs_equal_a_plain_forward_pass(tiny_model: Any) -> None:
    batch = one_batch(K2())
    found = TokenLogProbs(tiny_model)(batch)
    for b in range(len(found)):
        n = int(batch.lengths_B[b])
        logits = tiny_model(input_ids=batch.tokens_B_L[b : b + 1, :n]).logits[0, :-1]
        logits = logits / batch.temperatures_B_L[b, 1:n, None]
        expected = logits.log_softmax(-1).gather(-1, batch.tokens_B_L[b, 1:n, None])[:, 0] * batch.mask_B_L[b, 1:n]
        torch.testing.assert_close(found[b, 1:n], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("micro_tokens", [1, 40, 100_000])
def test_log_probs_come_row_by_row_from_any_split(tiny_model: Any, micro_tokens: int, packed: bool) -> None:
    batch = shared_batch()
    trainer = TorchTrainer(tiny_model, K2(), OptimConfig(), micro_tokens)
    trainer.token_logprobs.packed = packed
    order = torch.cat(list(slices(batch, micro_tokens, packed)))
    assert order.tolist() != sorted(order.tolist()) == list(range(9))
    found = trainer.log_probs(batch)
    assert [len(row) for row in found] == [int(n) for n in batch.mask_B_L.sum(-1)]
    with torch.no_grad():
        expected_B_L = TokenLogProbs(tiny_model)(batch)
    for row, expected_L, mask_L in zip(found, expected_B_L, batch.mask_B_L.bool(), strict=True):
        assert row.dtype == np.float32
        np.testing.assert_allclose(row, expected_L[mask_L].numpy(), atol=1e-5)


def test_ptx_is_normalised_on_its_own(tiny_model: Any) -> None:
    """Without policy terms the gradient is `weight` times that of the mean cross-entropy."""
    batch = one_batch(K2())
    silent = replace(batch, coefficients_B=torch.zeros_like(batch.coefficients_B))
    found = gradients(tiny_model, silent, 100_000, K2())
    assert batch.ptx is not None
    text = batch.ptx
    loss = -TokenLogProbs(tiny_model)(text).sum() / text.mask_B_L.sum() * 0.3
    tiny_model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in tiny_model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_save_and_load_continue_bit_for_bit(tiny_model: Any, tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    tiny_model.to(dtype)
    optim = OptimConfig(name=name, lr=Schedule(start=1e-3), weight_decay=0.01)
    trainer = TorchTrainer(tiny_model, K2(), optim, 4096)
    batch = one_batch(K2())
    trainer.step(batch, lr=1e-3)
    trainer.save(tmp_path)
    trainer.step(batch, lr=1e-3)
    expected = {n: t.clone() for n, t in trainer.named_tensors()}
    trainer.load(tmp_path)
    trainer.step(batch, lr=1e-3)
    for tensor_name, tensor in trainer.named_tensors():
        assert torch.equal(tensor, expected[tensor_name]), tensor_name


def test_a_checkpoint_of_another_dtype_is_refused(tiny_model: Any, tmp_path: Path) -> None:
    TorchTrainer(tiny_model, K2(), OptimConfig(), 4096).save(tmp_path)
    with pytest.raises(UserError, match=r"made with another model\.dtype"):
        TorchTrainer(tiny_model.to(torch.bfloat16), K2(), OptimConfig(), 4096).load(tmp_path)


def test_a_foreign_checkpoint_names_the_tensor(tiny_model: Any, tmp_path: Path, tiny_tokenizer: Any) -> None:
    from k2rl import scratch
    from k2rl.recipe import ScratchConfig

    other = scratch.model(ScratchConfig(hidden_size=32, layers=1), tiny_tokenizer, 0)
    TorchTrainer(other, K2(), OptimConfig(), 4096).save(tmp_path)
    with pytest.raises(UserError, match=r"of another model: model\.embed_tokens\.weight"):
        TorchTrainer(tiny_model, K2(), OptimConfig(), 4096).load(tmp_path)


def test_updates_raise_the_probability_of_the_better_response(tiny_model: Any) -> None:
    trainer = TorchTrainer(tiny_model, K2(), OptimConfig(), 4096)
    batch = one_batch(K2(), with_ptx=False)
    before = trainer.log_probs(batch)
    batch = replace(batch, old_logprobs_B_L=_scatter(batch, before))
    for _ in range(5):
        trainer.step(batch, lr=1e-3)
    after = trainer.log_probs(batch)
    for b, advantage in enumerate(batch.advantages_B.tolist()):
        change = float(after[b].sum() - before[b].sum())
        assert advantage == 0 or change * advantage > 0


def test_resetting_the_optimizer_forgets_its_moments(tiny_model: Any) -> None:
    trainer = TorchTrainer(tiny_model, K2(), OptimConfig(reset_each_iteration=True), 4096)
    batch = one_batch(K2())
    for _ in range(3):
        trainer.step(batch, lr=1e-4)
    assert {float(v) for k, v in trainer.optimizer.tensors().items() if k.startswith("step.")} == {1.0}


def _scatter(batch: Batch, values: list[Any]) -> torch.Tensor:
    old = torch.zeros_like(batch.old_logprobs_B_L)
    for b, row in enumerate(values):
        old[b, batch.mask_B_L[b].bool()] = torch.from_numpy(row)
    return old


def test_gradients_shared_between_parameters_are_not_added_twice() -> None:
    class Sum(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
            self.device = torch.device("cpu")

    found = []
    for workers in (1, 2):
        model = Sum()
        parts = [torch.ones(3), 2 * torch.ones(3)]
        Gradients(model, workers).add(parts, lambda x, m=model: (((m.a + m.b) * x).sum(), {}), {})  # type: ignore[misc]
        found.append([p.grad.tolist() for p in model.parameters() if p.grad is not None])
    assert found[0] == found[1] == [[3.0] * 3] * 2


def test_a_diverged_gradient_ends_the_run_before_it_spoils_the_weights(tiny_model: Any) -> None:
    trainer = TorchTrainer(tiny_model, K2(), OptimConfig(), 4096)
    before = {n: t.clone() for n, t in trainer.named_tensors()}
    batch = replace(one_batch(K2()), advantages_B=torch.full((9,), float("nan")))
    with pytest.raises(RunError, match="training diverged"):
        trainer.step(batch, lr=1e-3)
    assert all(torch.equal(t, before[n]) for n, t in trainer.named_tensors())
