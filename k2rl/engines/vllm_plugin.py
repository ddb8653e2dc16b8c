"""What k2rl adds to vLLM's workers: it loads this in each of them (entry point `vllm.general_plugins`).

Only in engines that k2rl has started, which it knows by an environment variable: a vLLM that merely shares the
installation is left as it is.
"""

from __future__ import annotations

import os

MARK = "K2RL_ENGINE"
PLUGIN = "k2rl"
BACKEND = "k2rl_shared_memory"
OWN = frozenset(
    {"model", "dtype", "seed", "max_model_len", "max_num_seqs", "trust_remote_code", "tensor_parallel_size"}
    | {"skip_tokenizer_init", "logprobs_mode", "weight_transfer_config", "async_scheduling", "enable_prefix_caching"}
)
"""Arguments of vLLM's that are k2rl's to set: others would be wrong in silence."""
TEMPERATURES = (0.01, 2.0)
"""vLLM takes a lower temperature for the lowest, and refuses a higher one."""


def register() -> None:
    """Make the weight transfer known, and keep the CPU's weights as they came."""
    if os.environ.get(MARK) != "1":
        return
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory
    from vllm.platforms import current_platform

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "k2rl.engines.vllm_weights", "SharedMemoryEngine")
    if current_platform.is_cpu():
        import vllm._custom_ops as ops

        # oneDNN packs a linear layer once, when it is loaded: later weights would not reach it, and those of a tied
        # head not even with a second packing.
        ops._supports_onednn = False
