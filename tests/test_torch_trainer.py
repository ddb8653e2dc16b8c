"""The trainer and its batches: any split into micro-batches gives the same gradient; state survives a round trip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from k2rl.batch import Batch, Example, batches, micro_batches, text_batch
from k2rl.errors import RunError, UserError
from k2rl.losses import Objective
from k2rl.losses.grpo import Grpo
from k2rl.losses.gspo import Gspo
from k2rl.losses.k2 import K2
from k2rl.losses.k2_5 import K2_5
from k2rl.recipe import OptimConfig
from k2rl.schedules import Schedule
from k2rl.trainers.gradients import Gradients
from k2rl.trainers.torch_trainer import TorchTrainer, token_logprobs
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
    """Bit for bit: gradients are added in the micro-batches' order, whoever is done first."""
    batch = one_batch(K2(0.1))
    alone = gradients(tiny_model, batch, 30, K2(0.1))
    for _ in range(5):
        together = gradients(tiny_model, batch, 30, K2(0.1), workers=3)
        assert all(torch.equal(together[name], grad) for name, grad in alone.items())


def test_micro_batches_hold_every_row_once_within_the_limit() -> None:
    batch = one_batch(K2())
    parts = list(micro_batches(batch, 40))
    assert sum(len(p.tokens_B_L) for p in parts) == len(batch.tokens_B_L)
    assert all(p.tokens_B_L.numel() <= 40 or len(p.tokens_B_L) == 1 for p in parts)
    assert sum(float(p.mask_B_L.sum()) for p in parts) == float(batch.mask_B_L.sum())


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
    found = token_logprobs(tiny_model, batch.tokens_B_L, batch.mask_B_L, batch.temperatures_B_L)
    for b in range(len(found)):
        n = int(batch.lengths_B[b])
        logits = tiny_model(input_ids=batch.tokens_B_L[b : b + 1, :n]).logits[0, :-1]
        logits = logits / batch.temperatures_B_L[b, 1:n, None]
        expected = logits.log_softmax(-1).gather(-1, batch.tokens_B_L[b, 1:n, None])[:, 0] * batch.mask_B_L[b, 1:n]
        torch.testing.assert_close(found[b, 1:n], expected, atol=1e-5, rtol=1e-5)


def test_ptx_is_normalised_on_its_own(tiny_model: Any) -> None:
    """Without policy terms the gradient is `weight` times that of the mean cross-entropy."""
    batch = one_batch(K2())
    silent = replace(batch, coefficients_B=torch.zeros_like(batch.coefficients_B))
    found = gradients(tiny_model, silent, 100_000, K2())
    assert batch.ptx is not None
    text = batch.ptx
    loss = -token_logprobs(tiny_model, text.tokens_B_L, text.mask_B_L).sum() / text.mask_B_L.sum() * 0.3
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
