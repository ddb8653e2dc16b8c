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
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from k2rl import rng
from k2rl.batch import pack
from k2rl.errors import RunError
from k2rl.models import Policy
from k2rl.protocols import Request, Sampler, Trainer
from k2rl.samplers.pool import SamplerPool
from k2rl.types import Segment

TOLERANCES = {torch.float32: 2e-3, torch.bfloat16: 0.15, torch.float16: 0.05}
"""The most by which log-probs of a canary may differ, by dtype; own choices. In float32 on a CPU rounding made less
than 1e-5 of them; the others are not measured."""
_LENGTHS = (300, 150, 7)
_LABELS = 16
_SAID = 8
_TEMPERATURE = 0.5


@dataclass(frozen=True)
class _Text:
    """A prompt, and one segment of it to score."""

    prompt_ids: tuple[int, ...]
    segments: tuple[Segment, ...]


class Sync:
    """See the module. A sampler that generates with the trainer's own module (`shared`) has nothing to prove; each
    member of a pool proves itself, also one that replaces another during a rollout."""

    def __init__(self, policy: Policy, trainer: Trainer, sampler: Sampler, seed: int) -> None:
        self.trainer, self.sampler = trainer, sampler
        self._asleep = False
        self._dtype, self._pad = policy.model.dtype, policy.chat.pad_id
        draw, vocabulary = rng.generator("canary", seed), policy.model.config.get_text_config().vocab_size
        room = max(policy.context - _SAID, 1)
        self._prompts = [tuple(draw.integers(vocabulary, size=min(n, room)).tolist()) for n in _LENGTHS]
        self._labels = draw.choice(vocabulary, size=min(_LABELS, vocabulary), replace=False).tolist()
        self._key = rng.key("canary", seed)
        if isinstance(sampler, SamplerPool):
            sampler.prove = self.prove

    def __call__(self, version: int) -> dict[str, float]:
        """Publish the weights as `version`; what that cost, and by how much the canaries' log-probs differ.

        Raises:
            RunError: the sampler's differ by more than rounding, or it stands at another version.
        """
        started = time.perf_counter()
        if self._asleep:
            self.trainer.release()
            self.sampler.wake(["weights"])
        self.sampler.publish(self.trainer.named_tensors(), version)
        if self._asleep:
            self.sampler.wake(["cache"])
            self._asleep = False
        if getattr(self.sampler, "shared", False):
            return {}
        published = time.perf_counter() - started
        if self.sampler.version != version:
            raise RunError(f"weights of version {version} were published, the sampler says {self.sampler.version}")
        pool = self.sampler if isinstance(self.sampler, SamplerPool) else None
        gap = max(pool.each(self.prove)) if pool else self.prove(self.sampler)
        return {
            "sync/gap": gap,
            **({"sync/bytes": float(pool.sent)} if pool else {}),
            "time/sync_publish": published,
            "time/sync_proof": time.perf_counter() - started - published,
        }

    def rest(self) -> None:
        """The sampler's memory is the trainer's until the next weights are published."""
        self.sampler.sleep()
        self._asleep = True

    def prove(self, sampler: Sampler) -> float:
        """The largest gap between the sampler's log-probs and the trainer's.

        Raises:
            RunError: it is larger than rounding.
        """
        told = sampler.score_labels(self._prompts, self._labels)
        known = self._logprobs([(p, (label,)) for p in self._prompts for label in self._labels], 1.0)
        gaps = {"after a known prompt": float(np.abs(told - np.reshape(known, told.shape)).max())}
        ids, said = self._said(sampler)
        (expected,) = self._logprobs([(self._prompts[-1], ids)], _TEMPERATURE)
        gaps[f"of tokens sampled at temperature {_TEMPERATURE:g}"] = float(np.abs(expected - said).max())
        worst = max(gaps, key=lambda what: gaps[what])
        allowed = TOLERANCES.get(self._dtype, max(TOLERANCES.values()))
        # A gap that is no number is no proof either.
        if not gaps[worst] <= allowed:
            raise RunError(
                f"weights of version {sampler.version} did not take effect: the sampler's log-probs {worst} differ by "
                f"{gaps[worst]:.3g} from the trainer's, and at most {allowed:g} is rounding{self._where(sampler)}"
            )
        return gaps[worst]

    def _where(self, sampler: Sampler) -> str:
        """What the sampler itself says of the trainer's weights, where it can be asked."""
        if not hasattr(sampler, "differing"):
            return ""
        try:
            found = sampler.differing(self.trainer.named_tensors())
        except RunError as error:
            return f"; asked for its weights, it failed: {error}"
        if not found:
            return "; all weights are equal there, but for rounding: it is a cache, a temperature or the computation"
        worst = max(found, key=lambda name: found[name])
        by = f"differs by {found[worst]:.3g} there" if math.isfinite(found[worst]) else "is not there"
        return f"; tensor {worst} {by}" + (f" ({len(found)} such tensors)" if len(found) > 1 else "")

    def _said(self, sampler: Sampler) -> tuple[tuple[int, ...], NDArray[np.float32]]:
        """A few tokens of the sampler's own after the shortest canary, with the log-probs it gives them."""
        sampler.submit([Request("canary", self._prompts[-1], (self._key,), _SAID, _TEMPERATURE, frozenset())])
        while not (done := sampler.poll()):
            pass
        if done[0].version != sampler.version:
            raise RunError(
                f"weights of version {sampler.version} were published, samples are stamped {done[0].version}"
            )
        return done[0].ids, np.asarray(done[0].logprobs, dtype=np.float32)

    def _logprobs(
        self, texts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], temperature: float
    ) -> list[NDArray[np.float32]]:
        """The trainer's log-probs of what follows each prompt."""
        rows = [_Text(p, (Segment("policy", ids, (0.0,) * len(ids), temperature, 0),)) for p, ids in texts]
        return self.trainer.log_probs(pack(rows, self._pad))
