"""The typed recipe of a run: every key and its default. `recipe_files.py` reads one, `recipe_checks.py` says what may
not stand in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from k2rl.budget import BudgetConfig
from k2rl.critic.tournament import Config as TournamentConfig
from k2rl.critic.trust import Config as TrustConfig
from k2rl.schedules import Schedule


@dataclass
class LoraConfig:
    """Adapters of `rank`, scaled by alpha / rank, in `modules`: `all-linear` (all but the head), or the last names of
    linear layers, such as [q_proj, v_proj]. There is no dropout: sampler and trainer see the same policy."""

    rank: int = 16
    alpha: float = 32.0
    modules: Any = "all-linear"


@dataclass
class ModelConfig:
    """`path`: a transformers folder, a hub id, or `nano`.

    `dtype`: auto (float32), float32, or bfloat16: weights and arithmetic in bfloat16, updates to float32 masters.
    `lora`: train adapters, and leave the weights as they are.
    """

    path: str = "nano"
    dtype: str = "auto"
    device: str = "auto"
    trust_remote_code: bool = False
    lora: LoraConfig | None = None


@dataclass
class EnvSpec:
    """One environment of the mixture, under a name of the user's choice.

    `weight` is its share of the tasks (in SFT: how many times each of its demonstrations is in the mixture); `pool`
    cuts an endless task stream; `temperature` overrides the run's; `reward_range` is required for plain gymnasium envs
    and maps their returns to [0, 1]. An `optional` one is left out where the machine can't run it.

    `measured` names a file of pass rates per task (`k2rl measure`). `pass_rate` [lowest, highest] keeps the tasks
    measured within it. `order` of the tasks: uniform (each pass over the pool is shuffled), prioritised (in proportion
    to 1 - success rate) or easy_to_hard (by measured pass rate, else by level).
    """

    id: str = "???"
    args: dict[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    pool: int = 2000
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    temperature: Schedule | None = None
    reward_range: list[float] | None = None
    optional: bool = False
    measured: str | None = None
    pass_rate: list[float] | None = None
    order: str = "uniform"


@dataclass
class RunConfig:
    """`iterations` of RL; checkpoints every so many of them; `checkpoints_kept` newest stay.

    `eval_tasks` held-out tasks per env are evaluated before and after, and every `eval_every` iterations (0: not).
    `max_failure_rate`: the run stops when a larger share of an iteration's rollouts has no verdict, or of one
    environment's rollouts (if they are not all of one task).

    An environment's call (reset, step) that takes longer than `patience_s` seconds is named on stderr, with the place
    where it is; one longer than `stuck_s` is given up, and its rollout has the verdict `timeout`.

    `report` writes report.html into the run's folder at its end, as `k2rl report` does at any time.
    """

    iterations: int = 100
    checkpoint_every: int = 50
    checkpoints_kept: int = 2
    eval_tasks: int = 200
    eval_every: int = 0
    max_failure_rate: float = 0.2
    patience_s: float = 60.0
    stuck_s: float = 300.0
    report: bool = True
    threads: int | None = None
    trackers: list[str] = field(default_factory=list)
    tracker_args: dict[str, Any] = field(default_factory=dict)


@dataclass
class RolloutConfig:
    """`tasks` prompts per iteration, `group_size` responses each; `slots` rows decode at once per engine; `workers`
    threads step the environments, with `worker_processes` each in a process of its own, in a cluster on any machine.
    `engine`: torch (the policy's own module), or vllm (`engines` processes, each over
    `tensor_parallel` GPUs, which are sent the weights after each update; `engine_args` are further ones of vLLM's
    EngineArgs); auto is vllm in a cluster. `pause_share` below 1 stops an iteration's rollouts once that share is done
    and resumes the rest first in the next one."""

    tasks: int = 16
    group_size: int = 16
    engine: str = "auto"
    engines: int = 1
    tensor_parallel: int = 1
    engine_args: dict[str, Any] = field(default_factory=dict)
    slots: int = 256
    workers: int = 2
    worker_processes: bool = False
    pause_share: float = 1.0


@dataclass
class OptimConfig:
    """`name`: adamw, or muon (hidden matrices by Muon, the rest by AdamW at `adamw_lr_ratio` times the lr).
    `reset_each_iteration` drops the moments at each iteration (K1.5 does; K2 is silent)."""

    name: str = "adamw"
    lr: Schedule = field(default_factory=lambda: Schedule(start=1e-5))
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    adamw_lr_ratio: float = 1.0
    reset_each_iteration: bool = False


@dataclass
class TrainerConfig:
    """`updates_per_iteration` mini-batches of whole groups with pi_old fixed; `micro_batch_workers` threads share
    their micro-batches on a CPU (null: all threads for a small model, 1 for a large one); `micro_batch_tokens` bounds
    the tokens of one forward and backward pass. `gradient_checkpointing` keeps of each layer only its input for the
    backward pass: far less memory, a third more time.

    `correction` of what the sampling engine's log-probs differ from the trainer's own (see `mismatch.py`): `none`, or
    `truncated`, importance weights of whole responses, at most `correction_cap`. A token counts in the metric
    `mismatch/over` where they differ by more than `mismatch_bound`. Cap and bound are own choices.

    `backend`: torch (this process, one device), or deepspeed (`ranks` processes; null: one for each GPU, two without
    any); auto is deepspeed in a cluster. `zero_stage` 1 shards what the optimizer keeps over the ranks, 2 gradients
    too, 3 also the weights; `offload` keeps the optimizer's part in the host's memory."""

    backend: str = "auto"
    ranks: int | None = None
    zero_stage: int = 2
    offload: bool = False
    updates_per_iteration: int = 2
    micro_batch_tokens: int = 8192
    micro_batch_workers: int | None = None
    gradient_checkpointing: bool = False
    correction: str = "none"
    correction_cap: float = 2.0
    mismatch_bound: float = 0.1


@dataclass
class PtxConfig:
    """Auxiliary next-token loss. `data`: `gold` (demonstrations of the recipe's own envs) or a JSONL of
    `{"prompt", "response"}` rows; `tokens` per update; `weight` against the policy loss (0: off)."""

    weight: Schedule = field(default_factory=lambda: Schedule(start=0.0))
    data: str = "gold"
    tokens: int = 2048


@dataclass
class CriticConfig:
    """The rubric critic: the policy in its judging role ranks the responses to open-ended tasks, and what the verifiers
    say about its own answers keeps it calibrated. Published is that this is done, not how: all values are own choices.

    `weights` that judge: `shared` (the policy as it is now), or `copy` (a copy of it from the run's start). `rubrics`
    are judged by beside those of each open-ended env and task. `reasoning_tokens` above 0 lets the judge argue before
    its verdict, instead of reading off the log-probs of two labels. `degradations` of each open-ended group's own
    responses per iteration measure how far the judge can be trusted; with `gate` that weighs the group's advantages.
    With `reference` a copy of the start's weights judges the same pairs, which shows what recalibration gained, and the
    gate's guard compares the two on them.

    `recalibrate`: `step` (updates of the critic's own after the policy's, with `optim`), `joint` (its loss, times
    `coefficient`, is part of the policy's updates, of which there are none without groups that train), or `none`
    (frozen, if `weights` is copy). An iteration brings at most `pairs` new verified pairs; an update takes `batch` from
    those of the last `window` iterations, a share `replay` of them corruptions of gold responses, as in SFT, of the
    envs that are open-ended or `held_out`: the latter's verified pairs measure the judge and teach it nothing. `label`
    weighs the token of a verdict, `text` each token of the better response where it comes first.
    `labels`: `verified`, or `random` (a control).
    """

    enabled: bool = False
    weights: str = "shared"
    rubrics: list[str] = field(default_factory=list)
    reasoning_tokens: int = 0
    tournament: TournamentConfig = field(default_factory=TournamentConfig)
    degradations: int = 8
    gate: bool = True
    reference: bool = False
    trust: TrustConfig = field(default_factory=TrustConfig)
    recalibrate: str = "step"
    coefficient: float = 1.0
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=Schedule(start=1e-5)))
    steps: int = 1
    pairs: int = 64
    batch: int = 64
    window: int = 8
    replay: float = 0.25
    held_out: list[str] = field(default_factory=list)
    label: float = 1.0
    text: float = 0.0
    labels: str = "verified"


@dataclass
class ClusterConfig:
    """Where the run's processes live. `address`: none (this machine, without Ray), local (a Ray cluster of this
    machine, for this run), auto (the one this machine is part of) or host:port (the run itself is on the cluster).

    With `colocated` the engines have the GPUs of the trainer's ranks, and sleep while those work; else GPUs of their
    own. A process that gives no sign of life for `hang_s` seconds ends the run, or is replaced if it is an engine."""

    address: str = "none"
    colocated: bool = True
    hang_s: float = 1800.0


@dataclass
class Recipe:
    """Everything `k2rl train` needs.

    `objective`: its `name` and the options of that objective (see docs/objectives.md); what is not set takes the
    objective's default.
    """

    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    envs: dict[str, EnvSpec] = field(default_factory=dict)
    run: RunConfig = field(default_factory=RunConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    temperature: Schedule = field(default_factory=Schedule)
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "k2"})
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    ptx: PtxConfig = field(default_factory=PtxConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        """What is `auto` is decided here, so that the saved recipe says what ran."""
        in_cluster = self.cluster.address != "none"
        if self.rollout.engine == "auto":
            self.rollout.engine = "vllm" if in_cluster else "torch"
        if self.trainer.backend == "auto":
            self.trainer.backend = "deepspeed" if in_cluster else "torch"


@dataclass
class ScratchConfig:
    """A new Llama-type model with its own byte-level BPE, for `k2rl sft` without `model.path`."""

    hidden_size: int = 128
    layers: int = 4
    head_size: int = 32
    vocab_size: int = 384
    max_length: int = 1024


@dataclass
class SftStop:
    """A stage ends when the held-out loss fell by less than `improvement` over the last `share` of its steps so far
    (but not before `min_minutes` of it). SFT as a whole takes `max_minutes` at most."""

    improvement: float = 0.01
    share: float = 0.2
    min_minutes: float = 2.0
    max_minutes: float = 30.0


@dataclass
class SftModelConfig(ModelConfig):
    """As `model` of a training recipe; without a path, `scratch` makes a new model."""

    path: str | None = None  # type: ignore[assignment]
    scratch: ScratchConfig = field(default_factory=ScratchConfig)


@dataclass
class SftPairs:
    """Preference pairs, which teach the model to judge: a gold response, and another one, against a corruption of the
    first, in both orders, for a share of an env's tasks. `shares`: env -> that share; `per_task` bounds the pairs of a
    task, whose kinds are drawn; many of few tasks teach less, and crowd a batch. `label` weighs the verdict's token
    against a token of a demonstration."""

    shares: dict[str, float] = field(default_factory=dict)
    per_task: int = 2
    label: float = 20.0


@dataclass
class SftConfig:
    """`pool` of each env bounds its demonstrations. `ema` averages the weights over about that many steps; the
    average is what is evaluated and saved (in `save_dtype`).

    `stages` are factors of `optim.lr.start`, each held until `stop` ends its stage: [1.0, 0.5] cools down at half the
    rate. Each stage after the first is sure of `cooldown_share` of `stop.max_minutes`.
    """

    batch_tokens: int = 2048
    micro_batch_tokens: int = 1024
    micro_batch_workers: int | None = None
    warmup_steps: int = 100
    held_out: int = 300
    eval_seconds: float = 30.0
    ema: int = 500
    stages: list[float] = field(default_factory=lambda: [1.0])
    cooldown_share: float = 0.15
    save_dtype: str = "float32"
    pairs: SftPairs = field(default_factory=SftPairs)
    stop: SftStop = field(default_factory=SftStop)


@dataclass
class SftRecipe:
    """Everything `k2rl sft` needs: demonstrations come from the envs' `gold`."""

    seed: int = 0
    model: SftModelConfig = field(default_factory=SftModelConfig)
    envs: dict[str, EnvSpec] = field(default_factory=dict)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=Schedule(start=1e-3, warmup=0.0)))
    sft: SftConfig = field(default_factory=SftConfig)
    threads: int | None = None
