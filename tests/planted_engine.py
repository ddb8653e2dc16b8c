"""Engines with a bug planted, to be found by the proof that weights arrived: run in the engine's process by test_vllm.

Which bug is told by the environment variable PLANTED.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from k2rl.engines.shared_memory import Bucket
from k2rl.engines.vllm_engine import Engine
from k2rl.protocols import Request


def copied(worker: Any) -> None:
    """The head becomes a copy of the embedding that it is tied to."""
    head = worker.get_model().lm_head
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)


def packed(worker: Any) -> None:
    """The head keeps its parameter, and computes with what it was once."""
    head = worker.get_model().lm_head
    once = head.weight.detach().clone()
    head.cpu_linear = lambda x, weight, bias: torch.nn.functional.linear(x, once, bias)


class Planted(Engine):
    def __init__(self, config: Any) -> None:
        self.bug = os.environ["PLANTED"]
        super().__init__(config)
        if self.bug == "stale cache":
            self._engine.reset_prefix_cache = lambda *args: True
        if self.bug.startswith("tied head"):
            self._engine.collective_rpc(copied if self.bug == "tied head is not refreshed" else packed)

    def load(self, bucket: Bucket) -> None:
        if self.bug == "one tensor is dropped":
            kept = tuple(e for e in bucket.entries if e.name != "model.layers.1.mlp.down_proj.weight")
            bucket = replace(bucket, entries=kept)
        super().load(bucket)

    def finish_update(self, version: int) -> None:
        super().finish_update(version)
        if self.bug == "version is not taken over":
            self.version = 0

    def submit(self, requests: Iterable[Request]) -> None:
        if self.bug == "wrong temperature":
            requests = [replace(r, temperature=1.0) for r in requests]
        super().submit(requests)
