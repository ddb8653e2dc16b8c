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
    """Adapters in the place of weights that learn. There is no dropout: sampler and trainer see the same policy.

    Args:
        rank: of the adapters.
        alpha: what they add is scaled by alpha / rank.
        modules: `all-linear` (all but the head), or the last names of linear layers, such as [q_proj, v_proj].
    """

    rank: int = 16
    alpha: float = 32.0
    modules: Any = "all-linear"


@dataclass
class ModelConfig:
    """The policy as the run begins.

    Args:
        path: a transformers folder, a hub id, or `nano`, the embedded one.
        dtype: `auto` (float32), `float32`, or `bfloat16`: weights and arithmetic in bfloat16, updates to float32
            masters.
        device: `auto` (a GPU where there is one), or one of torch's, such as `cpu` and `cuda:1`.
        trust_remote_code: run code that comes with the model.
        lora: train adapters, and leave the weights as they are.
    """

    path: str = "nano"
    dtype: str = "auto"
    device: str = "auto"
    trust_remote_code: bool = False
    lora: LoraConfig | None = None


@dataclass
class EnvSpec:
    """One environment of the mixture, under a name of the user's choice.

    Args:
        id: an installed one (`k2rl env list`), `module:Class`, `file.py:Class`, or gymnasium's as `gym:Id-v0`.
        args: arguments of its constructor.
        weight: its share of the tasks; in SFT how many times each of its demonstrations is in the mixture.
        pool: so many tasks are taken of an endless stream.
        budget: how long a response may be, and what its length does to the reward.
        temperature: a schedule of its own, in the place of the run's.
        reward_range: [lowest, highest] return of a plain gymnasium env, which needs it; mapped to [0, 1].
        optional: leave it out where the machine can't run it, instead of ending there.
        measured: a file of pass rates and lengths per task, by `k2rl measure`.
        pass_rate: [lowest, highest] measured pass rate of the tasks that are used.
        order: of the tasks: `uniform` (each pass over the pool is shuffled), `prioritised` (in proportion to 1 -
            success rate) or `easy_to_hard` (by measured pass rate, else by level).
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
    """How long the run is, what it keeps, when it gives up, and where it is shown.

    Args:
        iterations: of RL.
        checkpoint_every: a checkpoint is written every so many iterations.
        checkpoints_kept: so many of the newest stay.
        eval_tasks: held-out tasks per env that are evaluated before and after the run; 0: none.
        eval_every: they are evaluated every so many iterations as well; 0: not.
        max_failure_rate: the run stops when a larger share of an iteration's rollouts has no verdict, or of one
            environment's rollouts (if they are not all of one task).
        patience_s: an environment's call (reset, step) that takes longer is named on stderr, with the place where it
            is; seconds.
        stuck_s: one that takes longer than this is given up, and its rollout has the verdict `timeout`; seconds.
        report: report.html is written into the run's folder at its end, as `k2rl report` does at any time.
        threads: of torch in this process; null: torch's own choice.
        trackers: where metrics are shown as they come, beside `metrics.jsonl`: any of tensorboard, wandb, mlflow,
            trackio.
        tracker_args: options of those, by tracker.
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
    """What is sampled in an iteration, and by whom.

    Args:
        tasks: prompts per iteration.
        group_size: responses to each.
        engine: `torch` (the policy's own module), or `vllm`, in processes of its own which are sent the weights after
            each update; `auto` is vllm in a cluster, else torch.
        engines: processes of vLLM.
        tensor_parallel: GPUs of each of them.
        engine_args: further ones of vLLM's EngineArgs.
        slots: rows that decode at once, per engine.
        workers: threads that step the environments.
        worker_processes: each of those threads' environments in a process of its own, in a cluster on any machine.
        pause_share: below 1 an iteration's rollouts stop once that share is done, and the rest is resumed first in the
            next one.
    """

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
    """The optimizer.

    Args:
        name: `adamw`, or `muon`: hidden matrices by Muon, the rest by AdamW.
        lr: a schedule of the learning rate.
        betas: of AdamW's two moments.
        weight_decay: of matrices, times the learning rate.
        grad_clip: the largest norm of a gradient; 0: no bound.
        adamw_lr_ratio: AdamW's rate over Muon's.
        reset_each_iteration: drop the moments at each iteration (K1.5 does; K2 is silent).
    """

    name: str = "adamw"
    lr: Schedule = field(default_factory=lambda: Schedule(start=1e-5))
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    adamw_lr_ratio: float = 1.0
    reset_each_iteration: bool = False


@dataclass
class TrainerConfig:
    """How an iteration's rollouts become updates, and in which processes.

    Args:
        backend: `torch` (this process, one device), or `deepspeed`; `auto` is deepspeed in a cluster, else torch.
        ranks: processes of DeepSpeed; null: one for each GPU, two without any.
        zero_stage: of DeepSpeed: 1 shards what the optimizer keeps over the ranks, 2 gradients too, 3 also the weights.
        offload: keep the optimizer's part in the host's memory.
        updates_per_iteration: mini-batches of whole groups, with pi_old fixed.
        micro_batch_tokens: bounds the tokens of one forward and backward pass.
        micro_batch_workers: threads that share the micro-batches on a CPU; null: all threads for a small model, 1 for a
            large one.
        gradient_checkpointing: keep of each layer only its input for the backward pass: far less memory, a third more
            time.
        correction: of what the sampling engine's log-probs differ from the trainer's own (see `mismatch.py`): `none`,
            or `truncated`, importance weights of whole responses.
        correction_cap: the largest of those weights; an own choice.
        mismatch_bound: a token counts in the metric `mismatch/over` where the two differ by more; an own choice.
    """

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
    """An auxiliary next-token loss on given text.

    Args:
        weight: a schedule of its weight against the policy loss; 0: off.
        data: `gold` (demonstrations of the recipe's own envs), or a JSONL of `{"prompt", "response"}` rows.
        tokens: per update.
    """

    weight: Schedule = field(default_factory=lambda: Schedule(start=0.0))
    data: str = "gold"
    tokens: int = 2048


@dataclass
class CriticConfig:
    """The rubric critic: the policy in its judging role ranks the responses to open-ended tasks, and what the verifiers
    say about its own answers keeps it calibrated. Published is that this is done, not how: all values are own choices.

    Args:
        enabled: open-ended environments need one.
        weights: those that judge: `shared` (the policy as it is now), or `copy` (a copy of it from the run's start).
        rubrics: sets or rubrics to judge by, beside those of each open-ended env and task.
        reasoning_tokens: above 0 lets the judge argue that long before its verdict, instead of reading off the
            log-probs of two labels.
        tournament: who of a group is compared with whom.
        degradations: of each open-ended group's own responses, per iteration; they measure how far the judge can be
            trusted.
        gate: weigh a group's advantages by that.
        reference: a copy of the start's weights judges the same pairs, which shows what recalibration gained, and the
            gate's guard compares the two on them.
        trust: when the judge counts.
        recalibrate: `step` (updates of the critic's own after the policy's), `joint` (its loss is part of the policy's
            updates, of which there are none without groups that train), or `none` (frozen, if weights is copy).
        coefficient: what its loss is multiplied by.
        optim: the optimizer of `recalibrate=step`.
        steps: updates of `recalibrate=step` per iteration.
        pairs: the most new verified pairs of an iteration.
        batch: pairs of an update.
        window: an update draws from the pairs of so many last iterations.
        replay: the share of an update's pairs that are corruptions of gold responses, as in SFT, of the envs that are
            open-ended or held out.
        held_out: envs whose verified pairs measure the judge and teach it nothing.
        label: weighs the token of a verdict.
        text: weighs each token of the better response, where it comes first.
        labels: `verified`, or `random` (a control).
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
    """Where the run's processes live.

    Args:
        address: `none` (this machine, without Ray), `local` (a Ray cluster of this machine, for this run), `auto` (the
            one this machine is part of) or host:port (the run itself is on the cluster).
        colocated: the engines have the GPUs of the trainer's ranks, and sleep while those work; else GPUs of their own.
        hang_s: a process that gives no sign of life for so many seconds ends the run, or is replaced if it is an
            engine.
    """

    address: str = "none"
    colocated: bool = True
    hang_s: float = 1800.0


@dataclass
class Recipe:
    """Everything `k2rl train` needs.

    Args:
        seed: of every draw.
        model: the policy.
        envs: the mixture: a spec under each name; `envs.NAME=null` on the command line leaves one of the file out.
        run: how long, what is kept, where it is shown.
        rollout: what is sampled, and by whom.
        temperature: a schedule of the sampling temperature.
        objective: its `name` and the options of that objective (see docs/objectives.md); what is not set takes the
            objective's default.
        optim: the policy's optimizer.
        trainer: how rollouts become updates.
        ptx: an auxiliary loss on given text.
        critic: the judge of open-ended tasks.
        cluster: where processes live.
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
    """A new Llama-type model with its own byte-level BPE, for `k2rl sft` without `model.path`.

    Args:
        hidden_size: the width; a multiple of head_size.
        layers: their number.
        head_size: of an attention head.
        vocab_size: of its tokenizer.
        max_length: its context in tokens.
    """

    hidden_size: int = 128
    layers: int = 4
    head_size: int = 32
    vocab_size: int = 384
    max_length: int = 1024


@dataclass
class SftStop:
    """When a stage ends.

    Args:
        improvement: a stage ends when the held-out loss fell by a smaller share than this, in [0, 1), over the last
            steps.
        share: of the stage's steps so far, in (0, 1), that count as the last ones.
        min_minutes: no stage ends earlier.
        max_minutes: of SFT as a whole.
    """

    improvement: float = 0.01
    share: float = 0.2
    min_minutes: float = 2.0
    max_minutes: float = 30.0


@dataclass
class SftModelConfig(ModelConfig):
    """As `model` of a training recipe; without a path it is a new model.

    Args:
        path: of a model to go on from; null: a new one.
        scratch: the new one.
    """

    path: str | None = None  # type: ignore[assignment]
    scratch: ScratchConfig = field(default_factory=ScratchConfig)


@dataclass
class SftPairs:
    """Preference pairs, which teach the model to judge: a gold response, and another one, against a corruption of the
    first, in both orders.

    Args:
        shares: env -> the share of its tasks that pairs are made of.
        per_task: bounds the pairs of a task, whose kinds are drawn; many of few tasks teach less, and crowd a batch.
        label: weighs the verdict's token against a token of a demonstration.
    """

    shares: dict[str, float] = field(default_factory=dict)
    per_task: int = 2
    label: float = 20.0


@dataclass
class SftConfig:
    """The warm start. `pool` of each env bounds its demonstrations.

    Args:
        batch_tokens: of an update.
        micro_batch_tokens: bounds the tokens of one forward and backward pass.
        micro_batch_workers: as the trainer's.
        warmup_steps: over which the learning rate rises from 0.
        held_out: test tasks per env that the loss is measured on.
        eval_seconds: between two measurements.
        ema: the weights are averaged over about so many steps; the average is what is evaluated and saved.
        stages: factors of `optim.lr.start`, each held until `stop` ends its stage: [1.0, 0.5] cools down at half the
            rate.
        cooldown_share: of `stop.max_minutes`, of which each stage after the first is sure.
        save_dtype: of the saved weights.
        pairs: what teaches to judge.
        stop: when a stage ends.
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
    """Everything `k2rl sft` needs: demonstrations come from the envs' `gold`.

    Args:
        seed: of every draw.
        model: what is trained.
        envs: those whose demonstrations are learned, with `weight` and `pool`.
        optim: its optimizer; the rate is `lr.start` after the warm-up.
        sft: how long, and on what.
        threads: of torch; null: torch's own choice.
    """

    seed: int = 0
    model: SftModelConfig = field(default_factory=SftModelConfig)
    envs: dict[str, EnvSpec] = field(default_factory=dict)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=Schedule(start=1e-3, warmup=0.0)))
    sft: SftConfig = field(default_factory=SftConfig)
    threads: int | None = None
