"""Every key of `metrics.jsonl`: what it is, in which unit, and which module knows more.

`docs/metrics.md` is made of this table (see `reference.py`). `<env>` stands for an environment's name in the recipe,
`<source>` and `<kind>` for what their sections say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

SOURCES = ("verified", "degradation", "apart")
"""Of the pairs a judge is measured on."""


@dataclass(frozen=True)
class Key:
    """A key, or a pattern of keys with `<…>` for what varies.

    `source` is a module under `k2rl/`; `when` says which runs have the key, where not all do.
    """

    name: str
    unit: str
    says: str
    source: str
    when: str = ""

    @property
    def pattern(self) -> re.Pattern[str]:
        """What matches every key it stands for."""
        parts = re.split(r"<(\w+)>", self.name)
        named = {"source": "|".join(SOURCES)}
        return re.compile("".join(f"({named.get(p, '[^/]+')})" if n % 2 else re.escape(p) for n, p in enumerate(parts)))


@dataclass(frozen=True)
class Section:
    """Keys under a heading, with what holds for all of them."""

    title: str
    says: str
    keys: tuple[Key, ...]


_VLLM = "rollout.engine=vllm"
_APART = "rollout.engine=vllm or trainer.backend=deepspeed"
_MISMATCH = "rollout.engine=vllm, trainer.backend=deepspeed or trainer.correction"
_CORRECTED = "trainer.correction=truncated"
_OPEN = "open-ended"
_REFERENCE = "critic.reference"

SECTIONS = (
    Section(
        "The line",
        "",
        (
            Key("schema_version", "number", "The version of the file's format.", "runlog.py"),
            Key("iteration", "number", "The iteration, from 1.", "loop.py"),
        ),
    ),
    Section(
        "Rewards and responses",
        "Of an iteration's rollouts, per environment; an environment that had none has no keys in that line.",
        (
            Key(
                "reward/<env>",
                "reward",
                "Mean reward over the groups with two or more valid rollouts, penalties and length reward included: "
                "between -1 and 1, and beyond by half of `length_weight`.",
                "scoring.py",
            ),
            Key(
                "success/<env>",
                "share",
                "Rollouts whose verdict is `correct`, of all that have a verdict; cut ones are wrong.",
                "scoring.py",
                "not open-ended",
            ),
            Key("tokens/<env>", "tokens", "Mean length of a rollout in tokens of the policy.", "scoring.py"),
            Key("budget_hit/<env>", "share", "Rollouts that were cut at the tokens they may use.", "budget.py"),
            Key(
                "repeat/<env>",
                "share",
                "Rollouts that were ended because they repeated themselves.",
                "budget.py",
                "budget.max_repeats",
            ),
            Key(
                "over_estimate/<env>",
                "share",
                "Rollouts longer than their task's own estimated budget.",
                "budget.py",
                "budget.mode=toggle",
            ),
            Key(
                "toggle/<env>",
                "0 or 1",
                "1 in iterations in which the estimated budget counts, 0 in those between.",
                "budget.py",
                "budget.mode=toggle",
            ),
            Key("even_groups/<env>", "share", "Groups whose rewards are all equal.", "scoring.py"),
            Key("temperature/<env>", "temperature", "Mean sampling temperature of the policy's turns.", "scoring.py"),
            Key(
                "eval/<env>/pass@1",
                "share",
                "Held-out tasks solved by one sample at temperature 1, after this iteration's update.",
                "loop.py",
                "run.eval_every; not open-ended",
            ),
        ),
    ),
    Section(
        "The update",
        "Means over the iteration's mini-batches; where nothing trained they are missing. An objective of one's own "
        "adds `loss/NAME` for each of its statistics.",
        (
            Key("loss/policy", "objective", "The objective's loss of rollouts.", "trainers/terms.py"),
            Key(
                "loss/logratio",
                "nats",
                "Mean of log pi - log pi_old in the objective's own weights: per response for k2, rloo and gspo (whose "
                "is a mean over the response), per token for the others.",
                "losses/k2.py",
            ),
            Key(
                "loss/logratio_sq",
                "nats squared",
                "Mean square of the same log-ratio.",
                "losses/k2.py",
                "objective k2 or k2_5",
            ),
            Key(
                "loss/clipped",
                "share",
                "Tokens (gspo: responses) without a policy gradient; for cispo those with a bounded weight.",
                "losses/grpo.py",
                "objective k2_5, grpo, dapo, gspo or cispo",
            ),
            Key(
                "loss/ptx",
                "nats per token",
                "Next-token loss of the PTX texts, times `ptx.weight`.",
                "trainers/torch_trainer.py",
                "ptx.weight",
            ),
            Key(
                "loss/critic",
                "nats",
                "Loss of the critic's texts in the policy's updates, times `critic.coefficient`.",
                "trainers/torch_trainer.py",
                "critic.recalibrate=joint",
            ),
            Key(
                "train/groups",
                "groups",
                "Groups that trained: of a weight above 0, and even ones where the objective keeps them.",
                "scoring.py",
            ),
            Key("train/grad_norm", "norm", "Norm of the gradient before it is clipped.", "trainers/torch_trainer.py"),
            Key("train/lr", "rate", "The learning rate.", "trainers/torch_trainer.py"),
        ),
    ),
    Section(
        "Curriculum",
        "Per environment, over its pool of training tasks. A task's rate moves half-way to what a group of it shows.",
        (
            Key("curriculum/<env>/pool", "tasks", "Tasks in the pool.", "queues.py"),
            Key("curriculum/<env>/seen", "tasks", "Tasks of it that were handed out at least once.", "queues.py"),
            Key(
                "curriculum/<env>/success",
                "share",
                "Mean success rate of all tasks that were tried or measured.",
                "queues.py",
                "not open-ended",
            ),
            Key(
                "curriculum/<env>/expected",
                "share",
                "Mean success rate of this iteration's tasks as it was known before, of those where it was.",
                "queues.py",
                "where tasks came again or are measured",
            ),
            Key(
                "curriculum/<env>/reach",
                "share",
                "The part of the pool, from its easiest task on, that is within reach.",
                "queues.py",
                "order=easy_to_hard",
            ),
            Key(
                "curriculum/<env>/left_out",
                "tasks",
                "Tasks that the band of pass rates leaves out of the pool.",
                "curriculum.py",
                "pass_rate",
            ),
        ),
    ),
    Section(
        "Critic",
        "With `critic.enabled`; [critic.md](critic.md) says how it works. Keys with a `<source>` are of the pairs of "
        "the last `critic.trust.window` iterations: `verified` (a right against a wrong answer), `degradation` (an own "
        "response against its corruption), `apart` (against the corruption of another one). A `<kind>` is what a "
        "corruption did, by the environment's name for it.",
        (
            Key(
                "critic/accuracy",
                "share",
                "Verified pairs judged right, of all environments in the window; a tie counts half.",
                "critic/critic.py",
            ),
            Key(
                "critic/gain",
                "difference",
                "The same less what the judge of the run's start gets on the same pairs.",
                "critic/critic.py",
                _REFERENCE,
            ),
            Key("critic/judgements", "count", "Verdicts asked for; each of the two orders is one.", "critic/critic.py"),
            Key("critic/unreadable", "count", "Verdicts of those that could not be read.", "critic/critic.py"),
            Key("critic/fresh_pairs", "pairs", "Verified pairs that the judge was not trained on.", "critic/critic.py"),
            Key("critic/alarms", "count", "Gates that closed in this iteration.", "critic/critic.py"),
            Key("critic/comparisons", "count", "Comparisons that tournaments asked for.", "critic/critic.py"),
            Key("critic/missing", "count", "Comparisons of those without a verdict.", "critic/critic.py"),
            Key(
                "critic/intransitive",
                "share",
                "Circles (A over B over C over A) among the triples that were judged whole; mean of the tournaments.",
                "critic/critic.py",
            ),
            Key("critic/weight", "weight", "Mean of the gates' weights.", "critic/critic.py"),
            Key(
                "critic/weight/<env>",
                "weight",
                "What the gate gives the environment's advantages, from 0 (closed) to 1; with `critic.gate=false` it "
                "is measured all the same, and 1 is used.",
                "critic/critic.py",
                _OPEN,
            ),
            Key(
                "critic/bound/<env>",
                "share",
                "Lower bound of the accuracy that the gate's weight follows from.",
                "critic/critic.py",
                _OPEN,
            ),
            Key(
                "critic/baseline/<env>",
                "share",
                "What that bound has to exceed: the best trivial rule, at least 0.5.",
                "critic/critic.py",
                _OPEN,
            ),
            Key(
                "critic/temperature/<env>",
                "factor",
                "What the log-odds of verdicts are divided by before they become scores; 1 or more.",
                "critic/critic.py",
                _OPEN,
            ),
            Key(
                "critic/loss",
                "nats",
                "Loss of the critic's last own update, times `critic.coefficient`.",
                "trainers/text_trainer.py",
                "critic.recalibrate=step",
            ),
            Key(
                "critic/grad_norm",
                "norm",
                "Norm of that update's gradient before it is clipped.",
                "trainers/text_trainer.py",
                "critic.recalibrate=step",
            ),
            Key("critic/pairs/<env>/<source>", "pairs", "Pairs in the window.", "critic/trust.py"),
            Key(
                "critic/accuracy/<env>/<source>",
                "share",
                "Pairs judged right by the mean of both orders; a tie counts half.",
                "critic/trust.py",
            ),
            Key(
                "critic/accuracy_low/<env>/<source>",
                "share",
                "Lower end of its 95 % interval, by bootstrap over tasks.",
                "critic/critic.py",
            ),
            Key("critic/accuracy_high/<env>/<source>", "share", "Upper end of that interval.", "critic/critic.py"),
            Key(
                "critic/accuracy/<env>/<source>/<kind>",
                "share",
                "The same accuracy on the pairs of one kind of corruption.",
                "critic/critic.py",
                "not of verified pairs",
            ),
            Key(
                "critic/order_agreement/<env>/<source>",
                "share",
                "Pairs of which both orders prefer the same response.",
                "critic/trust.py",
            ),
            Key(
                "critic/brier/<env>/<source>",
                "score",
                "Mean square of 1 - P(the better one): 0 is best, 0.25 is a coin.",
                "critic/trust.py",
            ),
            Key(
                "critic/ece/<env>/<source>",
                "share",
                "Calibration error: how far sureness and accuracy differ, over ten bins of sureness.",
                "critic/trust.py",
            ),
            Key(
                "critic/gain/<env>/<source>",
                "difference",
                "Accuracy less that of the judge of the run's start on the same pairs.",
                "critic/trust.py",
                _REFERENCE,
            ),
            Key(
                "critic/length_slope/<env>/<source>",
                "log-odds",
                "By how much the log-odds of the better response rise with the log of its length over the other's.",
                "critic/trust.py",
            ),
            Key(
                "critic/longer/<env>/<source>",
                "share",
                "Accuracy of the rule that the longer response is the better one.",
                "critic/trust.py",
            ),
            Key("critic/shorter/<env>/<source>", "share", "The same of the shorter one.", "critic/trust.py"),
            Key(
                "critic/format/<env>/<source>",
                "share",
                "The same of the one that has the form of a response.",
                "critic/trust.py",
            ),
        ),
    ),
    Section(
        "Engine against trainer",
        "[engines.md](engines.md) and [objectives.md](objectives.md#where-the-engine-is-not-the-trainer) say more. "
        "Policy tokens of older weights, in rollouts that were paused, are in `mismatch/stale` alone.",
        (
            Key(
                "mismatch/mean",
                "nats",
                "Mean absolute difference of a token's two log-probs.",
                "mismatch.py",
                _MISMATCH,
            ),
            Key("mismatch/max", "nats", "The largest of them.", "mismatch.py", _MISMATCH),
            Key(
                "mismatch/over",
                "share",
                "Tokens that differ by more than `trainer.mismatch_bound`.",
                "mismatch.py",
                _MISMATCH,
            ),
            Key("mismatch/kl", "nats", "KL(engine || trainer) per token, estimated.", "mismatch.py", _MISMATCH),
            Key("mismatch/stale", "share", "Policy tokens that older weights sampled.", "mismatch.py", _MISMATCH),
            Key("correction/mean", "weight", "Mean importance weight of a rollout.", "mismatch.py", _CORRECTED),
            Key("correction/min", "weight", "The least of them.", "mismatch.py", _CORRECTED),
            Key(
                "correction/cut",
                "share",
                "Rollouts whose weight was cut at `trainer.correction_cap`.",
                "mismatch.py",
                _CORRECTED,
            ),
            Key(
                "sync/gap",
                "nats",
                "Largest difference of a log-prob between engine and trainer on the canaries, after the new weights.",
                "sync.py",
                _APART,
            ),
            Key("sync/bytes", "bytes", "Weights sent to each engine.", "sync.py", _VLLM),
        ),
    ),
    Section(
        "Time and speed",
        "In one process, with the same number of threads, two runs of a recipe differ in these keys alone.",
        (
            Key("time/iteration", "s", "The whole iteration, without evaluation and what is written.", "loop.py"),
            Key("time/rollout", "s", "Generating, and the environments' and verifiers' work beside it.", "loop.py"),
            Key("time/judge", "s", "Measuring the judge, and the tournaments.", "loop.py"),
            Key("time/score", "s", "Rewards and advantages.", "loop.py"),
            Key("time/train", "s", "The policy's updates.", "loop.py"),
            Key("time/critic", "s", "The critic's own updates.", "loop.py"),
            Key("time/sync", "s", "New weights to the sampler, with the proof that they arrived.", "loop.py"),
            Key("time/sync_publish", "s", "Of that: sending and loading.", "sync.py", _APART),
            Key("time/sync_proof", "s", "Of that: the proof.", "sync.py", _APART),
            Key(
                "time/train_mismatch",
                "s",
                "Of `time/train`: the trainer's own log-probs of the rollouts.",
                "mismatch.py",
                _MISMATCH,
            ),
            Key("perf/tokens_per_s", "tokens/s", "Policy tokens of the iteration over its whole time.", "loop.py"),
            Key(
                "perf/engine_idle",
                "share",
                "The iteration's time in which no engine had anything to do.",
                "samplers/pool.py",
                _VLLM,
            ),
        ),
    ),
    Section(
        "Errors",
        "Nothing here is a wrong answer: it is what went wrong with the machinery.",
        (
            Key(
                "errors/timeout",
                "rollouts",
                "Verdicts that took too long, the grader's or machine's fault.",
                "types.py",
            ),
            Key("errors/verifier_error", "rollouts", "Verdicts that failed in the verifier.", "types.py"),
            Key("errors/infra_error", "rollouts", "Verdicts that failed with the machine beneath.", "types.py"),
            Key("errors/groups_dropped", "groups", "Groups left with fewer than two valid rollouts.", "scoring.py"),
            Key(
                "errors/groups_restarted",
                "groups",
                "Groups begun anew, since what a run was interrupted in could not be restored.",
                "loop.py",
            ),
            Key(
                "errors/slow_calls/<env>",
                "calls",
                "Calls of the environment that took longer than `run.patience_s`.",
                "loop.py",
                "where there were any",
            ),
            Key("errors/engines_lost", "engines", "Engines that ended and were replaced.", "samplers/pool.py", _VLLM),
            Key("errors/trackers_lost", "trackers", "Trackers given up so far.", "trackers/feed.py", "run.trackers"),
        ),
    ),
)

KEYS = tuple(key for section in SECTIONS for key in section.keys)


@cache
def of(key: str) -> Key | None:
    """What the table says of a key of `metrics.jsonl`; None where it is not in there."""
    return next((known for known in KEYS if known.pattern.fullmatch(key)), None)
