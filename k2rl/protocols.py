"""What can be swapped: who generates, who trains, who verifies, who runs untrusted programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from k2rl.types import Verdict

if TYPE_CHECKING:
    import torch

    from k2rl.batch import Batch


@dataclass(frozen=True)
class Request:
    """Generate `n` continuations of `prompt_ids`.

    `keys[j]` seeds every draw of sample j (see `rng.py`), `first_position` is where its token counter starts
    (non-zero when a partial rollout goes on: so many ids at the end of `prompt_ids` are of the same turn). Temperature
    0 is greedy; its log-probs are reported at T = 1. A stop id ends a sample and is part of it. A sample that repeats
    itself `max_repeats` times (None: however often) is ended, see `repetition.py`.
    """

    id: str
    prompt_ids: tuple[int, ...]
    keys: tuple[int, ...]
    max_new_tokens: int
    temperature: float
    stop_ids: frozenset[int]
    first_position: int = 0
    max_repeats: int | None = None

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError(f"request {self.id}: the prompt is empty")
        if self.max_new_tokens < 1:
            raise ValueError(f"request {self.id}: max_new_tokens must be 1 or more, got {self.max_new_tokens}")
        if self.temperature < 0:
            raise ValueError(f"request {self.id}: temperature must be 0 or more, got {self.temperature}")

    @property
    def n(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class Completion:
    """Sample `index` of a request: its ids, their log-probs at the request's temperature, why it ended, and
    the version of the weights it was *finished* with."""

    request_id: str
    index: int
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Literal["stop", "length", "repeat", "abort"]
    version: int


@runtime_checkable
class Sampler(Protocol):
    """Who generates. Request level, so that slow tools, remote engines and partial rollouts all fit."""

    version: int

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests; returns at once."""

    def poll(self) -> list[Completion]:
        """Work a little and return what has finished since the last call, possibly nothing."""

    def abort(self, ids: Iterable[str] | None = None) -> list[Completion]:
        """Stop requests (None: all) and return their unfinished samples as partials, also empty ones.

        Where the engine works on its own, samples that have finished by then are among what is returned."""

    def score_labels(self, prompts: Sequence[Sequence[int]], label_ids: Sequence[int]) -> NDArray[np.float32]:
        """Log-probs at T = 1, over the full vocabulary, of each label as the next token: shape (P, N)."""

    def publish(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Take over the trainer's weights and stamp what is generated from now on with `version`."""

    def sleep(self) -> None:
        """Give the device's memory to the trainer."""

    def wake(self, tags: Sequence[str] = ("weights", "cache")) -> None:
        """Take it back."""

    def close(self) -> None:
        """Free everything."""


class Trainer(Protocol):
    """Who turns a batch into an update."""

    def step(self, batch: Batch, *, lr: float) -> dict[str, float]:
        """One optimizer update on the whole (mini-)batch; statistics under `loss/…` and `train/…`."""

    def log_probs(self, batch: Batch) -> list[NDArray[np.float32]]:
        """Per rollout, the current policy's log-probs of its policy tokens at their temperature."""

    def named_tensors(self) -> Iterable[tuple[str, torch.Tensor]]:
        """The full set of weights by transformers' names."""

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state into an existing folder."""

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; raises `UserError` naming a missing or foreign tensor."""

    @property
    def files(self) -> frozenset[str]:
        """The names of the files that `save` writes."""

    def release(self) -> None:
        """Give back what is reserved of the device's memory and not in use, before an engine wakes there."""

    def bring_home(self, model: Any) -> None:
        """Copy what is trained into `model`, which is this process's own."""

    def close(self) -> None:
        """Free everything."""


class Reward(Protocol):
    """Who verifies an answer. Envs call rewards; `eval-rewards` and replay use the same object.

    A reward that looks for a marked final answer may also have `bare(answer, reference)`, which takes the answer alone.
    """

    def __call__(self, response: str, reference: Mapping[str, object]) -> Verdict:
        """The verdict on a response."""


@dataclass(frozen=True)
class CallTest:
    """`fn(*args) == expected`, compared outside the program's reach.

    `args` is the Python source of a tuple of literals, `expected` that of one literal: text, so that tuples, sets and
    big integers survive JSON.
    """

    fn: str
    args: str
    expected: str


@dataclass(frozen=True)
class StdioTest:
    """The program, run as a script on `stdin`, prints `stdout` (by the whitespace rules of contests)."""

    stdin: str
    stdout: str


@dataclass(frozen=True)
class ScriptTest:
    """Test code that passes if it ends without an exception. It runs apart from the program and reaches the program's
    functions by remote calls. Names of `fns` are the program's also where a builtin has the same name.

    The script tests of one run share their global names, in order, as lines of one file would."""

    source: str
    fns: tuple[str, ...] = ()


ProgramTest = CallTest | StdioTest | ScriptTest


@dataclass(frozen=True)
class Limits:
    """What an untrusted program may use, all its calls together (each stdin/stdout test is a run of its own)."""

    cpu_s: float = 5.0
    wall_s: float = 20.0
    memory_mb: int = 512
    output_bytes: int = 1_000_000


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Outcome:
    """What became of a program: the verdict on all tests together (`correct` only if every one passed), whether each
    test passed (empty where the verdict carries no score), and what was used."""

    verdict: Verdict
    passed: tuple[bool, ...]
    cpu_s: float
    wall_s: float


class Sandbox(Protocol):
    """Who runs untrusted programs: a local jail or a remote service. Thread-safe."""

    def run(self, program: str, tests: Sequence[ProgramTest], limits: Limits = DEFAULT_LIMITS) -> Outcome:
        """Run `program` against `tests` under `limits`.

        The program's own failures (exceptions, time, memory, output, a forged or missing result) are `wrong`. A failure
        of the sandbox has a verdict without a score.
        """

    def close(self) -> None:
        """End its processes."""
