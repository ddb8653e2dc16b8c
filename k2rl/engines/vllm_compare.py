"""What vLLM's workers hold of the trainer's weights: functions for `collective_rpc`, which calls them with a worker."""

from __future__ import annotations

from functools import partial
from typing import Any

from k2rl.engines.comparing import changes, computed, gap
from k2rl.engines.shared_memory import Bucket, Inbox


def changes_of_bucket(worker: Any, bucket: Bucket) -> dict[str, float]:
    """See `changes`: the bucket's tensors are loaded once more."""
    from vllm.config import set_current_vllm_config

    model, inbox = worker.get_model(), Inbox()
    try:
        with set_current_vllm_config(worker.vllm_config):
            return changes(model, model.load_weights, inbox.read(bucket))
    finally:
        inbox.close()


def changes_of_heads(worker: Any) -> dict[str, float]:
    """By how much what the heads compute with differs from their weights; from the embedding's where they are tied.

    A head may have been copied or packed when it was made: new weights are loaded beside it then.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    layers = {n: m for n, m in worker.get_model().named_modules() if isinstance(m, VocabParallelEmbedding)}
    heads = {n: m for n, m in layers.items() if isinstance(m, ParallelLMHead)}
    embeddings = {n: m for n, m in layers.items() if n not in heads}
    tied = worker.vllm_config.model_config.hf_text_config.tie_word_embeddings
    found = {}
    for head_name, head in heads.items():
        for name, holder in embeddings.items() if tied else [(head_name, head)]:
            if holder.weight.shape != (head.num_embeddings_per_partition, head.embedding_dim):
                continue
            held = computed(partial(head.quant_method.apply, head), holder.weight)
            what = f"{head_name}.weight (tied to {name}.weight)" if tied else f"{head_name}.weight"
            found[what] = gap(held, holder.weight.detach().cpu())
    return found
