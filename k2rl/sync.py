"""New weights to the sampler, and the proof that they arrived.

    sync = Sync(policy, trainer, sampler, seed)
    metrics = sync(version)          # stops the run where the sampler is not the policy that was trained

A sampler with weights of its own can be wrong in silence: a tensor that did not arrive, a cache of the old weights, a
head that was packed once, log-probs of another temperature. So after each publication the sampler is asked about
prompts that are known here, the canaries, and its answers are compared with the trainer's own. They are the same each
time and longer than a block of any cache, so that a cache that outlived its weights answers for them. Where they don't
agree, a sampler that has `differing(named_tensors)` is asked which of the weights it does not hold.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from numpy.typing import NDArray

from k2rl import rng
from k2rl.errors import RunError
from k2rl.models import Policy
from k2rl.protocols import Request, Sampler, Trainer

TOLERANCES = {torch.float32: 2e-3, torch.bfloat16: 0.15, torch.float16: 0.05}
"""The most by which log-probs of a canary may differ, by dtype; own choices. In float32 on a CPU rounding made less
than 1e-5 of them; the others are not measured."""
_LENGTHS = (300, 150, 7)
_LABELS = 16
_SAID = 8
_TEMPERATURE = 0.5


class Sync:
    """See the module. A sampler that generates with the trainer's own module (`shared`) has nothing to prove."""

    def __init__(self, policy: Policy, trainer: Trainer, sampler: Sampler, seed: int) -> None:
        self.policy, self.trainer, self.sampler = policy, trainer, sampler
        draw, vocabulary = rng.generator("canary", seed), policy.model.config.get_text_config().vocab_size
        room = max(policy.context - _SAID, 1)
        self._prompts = [draw.integers(vocabulary, size=min(n, room)).tolist() for n in _LENGTHS]
        self._labels = draw.choice(vocabulary, size=min(_LABELS, vocabulary), replace=False).tolist()
        self._key = rng.key("canary", seed)

    def __call__(self, version: int) -> dict[str, float]:
        """Publish the weights as `version`; what that cost, and by how much the canaries' log-probs differ.

        Raises:
            RunError: the sampler's differ by more than rounding, or it stands at another version.
        """
        started = time.perf_counter()
        self.sampler.publish(self.trainer.named_tensors(), version)
        if getattr(self.sampler, "shared", False):
            return {}
        published = time.perf_counter() - started
        gap = self._proof(version)
        return {
            "sync/gap": gap,
            "time/sync_publish": published,
            "time/sync_proof": time.perf_counter() - started - published,
        }

    def _proof(self, version: int) -> float:
        if self.sampler.version != version:
            raise RunError(f"weights of version {version} were published, the sampler says {self.sampler.version}")
        told = self.sampler.score_labels(self._prompts, self._labels)
        known = [self._logprobs(prompt, [], 1.0)[0, self._labels] for prompt in self._prompts]
        gaps = {"after a known prompt": float(np.abs(told - np.stack(known)).max())}
        ids, said = self._said(version)
        logprobs_L_V = self._logprobs(self._prompts[-1], ids, _TEMPERATURE)
        gaps[f"of tokens sampled at temperature {_TEMPERATURE:g}"] = float(
            np.abs(logprobs_L_V[np.arange(len(ids)), ids] - said).max()
        )
        worst = max(gaps, key=lambda what: gaps[what])
        allowed = TOLERANCES.get(self.policy.model.dtype, max(TOLERANCES.values()))
        # A gap that is no number is no proof either.
        if not gaps[worst] <= allowed:
            raise RunError(
                f"weights of version {version} did not take effect: the sampler's log-probs {worst} differ by "
                f"{gaps[worst]:.3g} from the trainer's, and at most {allowed:g} is rounding{self._where()}"
            )
        return gaps[worst]

    def _where(self) -> str:
        """What the sampler itself says of the trainer's weights, where it can be asked."""
        if not hasattr(self.sampler, "differing"):
            return ""
        try:
            found = self.sampler.differing(self.trainer.named_tensors())
        except RunError as error:
            return f"; asked for its weights, it failed: {error}"
        if not found:
            return "; all weights are equal there, but for rounding: it is a cache, a temperature or the computation"
        worst = max(found, key=lambda name: found[name])
        by = f"differs by {found[worst]:.3g} there" if math.isfinite(found[worst]) else "is not there"
        return f"; tensor {worst} {by}" + (f" ({len(found)} such tensors)" if len(found) > 1 else "")

    def _said(self, version: int) -> tuple[list[int], NDArray[np.float32]]:
        """A few tokens of the sampler's own after the shortest canary, with the log-probs it gives them."""
        prompt = tuple(self._prompts[-1])
        self.sampler.submit([Request("canary", prompt, (self._key,), _SAID, _TEMPERATURE, frozenset())])
        while not (done := self.sampler.poll()):
            pass
        if done[0].version != version:
            raise RunError(f"weights of version {version} were published, samples are stamped {done[0].version}")
        return list(done[0].ids), np.asarray(done[0].logprobs, dtype=np.float32)

    @torch.no_grad()
    def _logprobs(self, prompt: list[int], said: list[int], temperature: float) -> NDArray[np.float32]:
        """The trainer's log-probs of the whole vocabulary, from the end of the prompt on: shape (L, V)."""
        ids = torch.tensor([prompt + said], device=self.policy.model.device)
        logits_L_V = self.policy.model(input_ids=ids).logits[0, len(prompt) - 1 :].float()
        logprobs: NDArray[np.float32] = torch.log_softmax(logits_L_V / temperature, dim=-1).cpu().numpy()
        return logprobs
