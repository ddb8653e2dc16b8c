"""Who trains, who generates and where environments live: this process, or workers of its own, as the recipe says."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import torch

from k2rl.cluster.machines import Machines
from k2rl.cluster.worker import Job, Worker
from k2rl.envpool import EnvPool
from k2rl.errors import UserError
from k2rl.lora import weights_of
from k2rl.losses import Objective
from k2rl.models import Policy, place
from k2rl.progress import console
from k2rl.protocols import Sampler, Trainer
from k2rl.recipe import Recipe
from k2rl.samplers.pool import SamplerPool
from k2rl.samplers.torch_sampler import TorchSampler
from k2rl.trainers.torch_trainer import TorchTrainer


def trainer_of(recipe: Recipe, policy: Policy, goal: Objective, machines: Machines) -> Trainer:
    """Who trains: this process, or DeepSpeed's ranks."""
    limits = (recipe.trainer.micro_batch_tokens, recipe.trainer.micro_batch_workers)
    if recipe.trainer.backend == "torch":
        return TorchTrainer(policy.model, goal, recipe.optim, *limits)
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError("trainer.backend=deepspeed: DeepSpeed is not installed; pip install 'k2rl[deepspeed]'")
    from k2rl.trainers.deepspeed_rank import RankConfig
    from k2rl.trainers.deepspeed_trainer import DeepSpeedTrainer

    if recipe.optim.name == "muon" and recipe.optim.grad_clip:
        console.print("optim.grad_clip is left out: DeepSpeed's Muon would clip updates, not gradients")
    model = replace(recipe.model, path=place(recipe.model))
    cluster, count = recipe.cluster, machines.rank_count
    jobs = [
        Job(
            f"trainer rank {rank}",
            "k2rl.trainers.deepspeed_rank:Rank",
            RankConfig(
                rank,
                count,
                model,
                recipe.seed,
                goal,
                recipe.optim,
                recipe.trainer,
                recipe.run.threads or (None if torch.cuda.is_available() else 1),
                cluster.hang_s,
            ),
            cluster.hang_s,
        )
        for rank in range(count)
    ]
    return DeepSpeedTrainer(machines.ranks(jobs), recipe.trainer.zero_stage)


def sampler_of(recipe: Recipe, policy: Policy, trainer: Trainer, machines: Machines) -> Sampler:
    """Who generates: the policy's own module here, or vLLM in processes of its own."""
    rollout = recipe.rollout
    if rollout.engine == "torch":
        shared = recipe.trainer.backend == "torch"
        return TorchSampler(policy.model, policy.chat.pad_id, rollout.slots, shared=shared)
    if importlib.util.find_spec("vllm") is None:
        raise UserError("rollout.engine=vllm: vLLM is not installed; pip install 'k2rl[vllm]' (docs/engines.md)")
    from k2rl.engines.vllm_engine import EngineConfig
    from k2rl.samplers.vllm_sampler import Publisher, VllmSampler

    config = EngineConfig(
        path=place(recipe.model),
        dtype=str(policy.model.dtype).removeprefix("torch."),
        context=policy.context,
        slots=rollout.slots,
        seed=recipe.seed,
        trust_remote_code=recipe.model.trust_remote_code,
        tensor_parallel=rollout.tensor_parallel,
        options=rollout.engine_args,
    )
    publisher = Publisher(weight.name for weight in weights_of(policy.model))

    def start(n: int) -> VllmSampler:
        job = Job(f"vLLM engine {n}", "k2rl.engines.vllm_engine:Engine", config, recipe.cluster.hang_s)
        return VllmSampler(machines.engine(n, job), publisher)

    return SamplerPool(start, rollout.engines, trainer.named_tensors, publisher.close)


def env_pool(recipe: Recipe, machines: Machines) -> EnvPool:
    """The recipe's environments, in this process or in those of their workers."""
    if not recipe.rollout.worker_processes:
        return EnvPool(recipe.envs, recipe.rollout.workers, recipe.run)
    environments = {name: (spec.id, spec.args) for name, spec in recipe.envs.items()}

    def start(n: int) -> Worker:
        job = Job(f"env worker {n}", "k2rl.remote_env:EnvHost", environments, recipe.cluster.hang_s)
        return machines.env_host(n, job)

    return EnvPool(recipe.envs, recipe.rollout.workers, recipe.run, start)
