"""vLLM as `VllmSampler` wants it: requests in, completions out, one token for every running sample per `step`.

vLLM's engine core lives in this process (`VLLM_ENABLE_V1_MULTIPROCESSING=0`), which is nobody else's: it changes
threads, allocator and signal handlers to its liking. Import this where vLLM is to be, after `prepare`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from k2rl import rng
from k2rl.engines.comparing import differing
from k2rl.engines.shared_memory import Bucket
from k2rl.engines.vllm_compare import changes_of_bucket, changes_of_heads
from k2rl.engines.vllm_plugin import BACKEND, MARK, PLUGIN
from k2rl.protocols import Completion, Request
from k2rl.repetition import circling

_SEED = (1 << 63) - 1
_STEP = 4096
"""Tokens of a step on a CPU, or a whole context."""


@dataclass(frozen=True)
class EngineConfig:
    """What an engine is started with.

    `path`: a transformers folder or hub id; `context`: the most tokens of prompt and response; `slots`: samples that
    run at once; `memory_share` of a GPU; `cache_gib` for keys and values on a CPU; `options`: further arguments of
    vLLM's `EngineArgs`, as they are, none of `OWN`.
    """

    path: str
    dtype: str
    context: int
    slots: int
    seed: int = 0
    trust_remote_code: bool = False
    tensor_parallel: int = 1
    memory_share: float = 0.4
    cache_gib: int = 1
    options: dict[str, Any] | None = None


def prepare(config: EngineConfig) -> None:
    """Set what vLLM reads from the environment when it is imported; what the user has set stays."""
    os.environ[MARK] = "1"
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    defaults = {
        "VLLM_CPU_KVCACHE_SPACE": str(config.cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    others = [name for name in os.environ.get("VLLM_PLUGINS", "").split(",") if name not in ("", PLUGIN)]
    os.environ["VLLM_PLUGINS"] = ",".join([*others, PLUGIN])


@dataclass
class _Sample:
    """A sample under way: whose it is, and what it has said."""

    request: Request
    index: int
    ids: list[int]
    logprobs: list[float]


class Engine:
    """See the module."""

    def __init__(self, config: EngineConfig) -> None:
        prepare(config)
        from vllm import EngineArgs, LLMEngine
        from vllm.config import WeightTransferConfig
        from vllm.platforms import current_platform

        given = {
            "model": config.path,
            "dtype": config.dtype,
            "max_model_len": config.context,
            "max_num_seqs": config.slots,
            "seed": config.seed,
            "trust_remote_code": config.trust_remote_code,
            "tensor_parallel_size": config.tensor_parallel,
            "skip_tokenizer_init": True,
            "logprobs_mode": "processed_logprobs",
            "enable_prefix_caching": True,
            "enforce_eager": current_platform.is_cpu(),
            "disable_log_stats": True,
            # A step that is already planned would run beside new weights, or on memory that was given away.
            "async_scheduling": False,
            "weight_transfer_config": WeightTransferConfig(backend=BACKEND),
        }
        if current_platform.is_cpu():
            # A prompt cut into several steps takes back draws of its sample's generator, which a CPU's can't.
            given |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(config.context, _STEP)}
        else:
            given |= {"gpu_memory_utilization": config.memory_share, "enable_sleep_mode": True}
        self._engine = LLMEngine.from_engine_args(EngineArgs(**{**given, **(config.options or {})}))
        self._engine.collective_rpc("init_weight_transfer_engine", args=({},))
        self._samples: dict[str, _Sample] = {}
        self._numbers = 0
        self._updating = False
        self.version = 0

    @property
    def busy(self) -> bool:
        return bool(self._samples)

    def submit(self, requests: Iterable[Request]) -> None:
        """Take requests in: each sample is one of vLLM's, the prompt's keys and values are shared by its cache."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        for request in requests:
            for index, key in enumerate(request.keys):
                params = SamplingParams(
                    temperature=request.temperature,
                    max_tokens=request.max_new_tokens,
                    stop_token_ids=sorted(request.stop_ids),
                    ignore_eos=True,
                    # A part that goes on after a pause must not repeat the draws of its beginning.
                    seed=rng.key(key, request.first_position) & _SEED,
                    logprobs=0,
                    detokenize=False,
                    output_kind=RequestOutputKind.DELTA,
                )
                self._add(request.prompt_ids, params, _Sample(request, index, [], []))

    def step(self) -> list[Completion]:
        """One token for every running sample; those that have finished."""
        done = []
        for output in self._engine.step():
            sample = self._samples[output.request_id]
            (said,) = output.outputs
            sample.ids += said.token_ids
            sample.logprobs += [at[i].logprob for at, i in zip(said.logprobs or (), said.token_ids, strict=True)]
            finish = said.finish_reason
            if finish is None and circling(sample.request, sample.ids):
                self._engine.abort_request([output.request_id])
                finish = "repeat"
            if finish is not None:
                del self._samples[output.request_id]
                done.append(self._completion(sample, finish))
        return done

    def abort(self, ids: Iterable[str] | None = None) -> list[Completion]:
        """Stop requests (None: all) and return what their samples have said so far."""
        wanted = None if ids is None else set(ids)
        hit = [n for n, sample in self._samples.items() if wanted is None or sample.request.id in wanted]
        self._engine.abort_request(hit)
        return [self._completion(self._samples.pop(n), "abort") for n in hit]

    def score_labels(self, prompts: Sequence[Sequence[int]], label_ids: Sequence[int]) -> NDArray[np.float32]:
        """See `Sampler.score_labels`.

        Raises:
            ValueError: samples are under way: their next tokens would come in between.
        """
        from vllm import SamplingParams

        if self.busy:
            raise ValueError("score_labels while samples are under way: poll them to the end or abort them first")
        params = SamplingParams(temperature=1.0, max_tokens=1, logprob_token_ids=list(label_ids), detokenize=False)
        places = {str(n): n for n in range(len(prompts))}
        for place, n in places.items():
            self._engine.add_request(place, {"prompt_token_ids": list(prompts[n])}, params)
        scores = np.full((len(prompts), len(label_ids)), np.nan, dtype=np.float32)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                at = output.outputs[0].logprobs[0]
                scores[places[output.request_id]] = [at[label].logprob for label in label_ids]
        return scores

    # --- weights -----------------------------------------------------------------------------------------

    def begin_update(self) -> None:
        if self.busy:
            raise ValueError("new weights while samples are under way: poll them to the end or abort them first")
        self._engine.collective_rpc("start_weight_update")
        self._updating = True

    def load(self, bucket: Bucket) -> None:
        self._engine.collective_rpc("update_weights", args=({"bucket": bucket},))

    def finish_update(self, version: int) -> None:
        """From now on everything is of these weights: what the cache holds is of the old ones."""
        self.rewind()
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM could not reset its prefix cache: it would go on from keys of the old weights")
        self._engine.set_weight_version(str(version))
        self.version = version

    def rewind(self) -> None:
        """End an update under way, whatever has arrived of it."""
        if self._updating:
            self._engine.collective_rpc("finish_weight_update")
            self._updating = False

    def differing(self, bucket: Bucket) -> dict[str, float]:
        """Which of a bucket's tensors the model did not hold, and by how much; from now on it does."""
        shards = self._engine.collective_rpc(changes_of_bucket, args=(bucket,))
        return differing(shards, [entry.name for entry in bucket.entries])

    def differing_heads(self) -> dict[str, float]:
        """Which heads compute with other weights than the model holds, and by how much."""
        shards = self._engine.collective_rpc(changes_of_heads)
        return differing(shards, sorted({name for shard in shards for name in shard}))

    def sleep(self) -> None:
        """Give the device's memory away. The weights are dropped: the next ones are published before anything else."""
        self._engine.reset_prefix_cache()
        self._engine.sleep(level=2)

    def wake(self, tags: Sequence[str]) -> None:
        self._engine.wake_up(list(tags))

    # --- inside ------------------------------------------------------------------------------------------

    def _add(self, prompt_ids: Sequence[int], params: Any, sample: _Sample) -> None:
        self._numbers += 1
        name = str(self._numbers)
        self._engine.add_request(name, {"prompt_token_ids": list(prompt_ids)}, params)
        self._samples[name] = sample

    def _completion(self, sample: _Sample, finish: Any) -> Completion:
        request = sample.request
        return Completion(request.id, sample.index, tuple(sample.ids), tuple(sample.logprobs), finish, self.version)
