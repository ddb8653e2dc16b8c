"""One rank of the DeepSpeed trainer, in a process of its own: ZeRO 1 to 3 over all ranks.

Every rank is given the whole mini-batch, and cuts it into the same micro-batches; they are dealt out in turn. Losses
are sums with coefficients of the whole mini-batch, and DeepSpeed averages gradients over ranks: a loss is multiplied by
the number of ranks, and nothing is divided by the number of micro-batches. A rank without a micro-batch in a turn takes
the first again with coefficients of 0, because ZeRO's ranks meet in every forward and backward pass.

What is saved is each rank's own share of master weights and moments, as safetensors. Import DeepSpeed nowhere else.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from k2rl import lora
from k2rl.batch import Batch, TextBatch, slices, take
from k2rl.engines.shared_memory import BUCKET, Bucket, Inbox, Outbox
from k2rl.errors import UserError
from k2rl.lora import Weight
from k2rl.losses import Objective
from k2rl.models import checkpoint_layers, load_policy
from k2rl.optim.model_optimizer import diverged
from k2rl.recipe import ModelConfig, OptimConfig, TrainerConfig
from k2rl.trainers import deepspeed_settings
from k2rl.trainers.gradients import Terms
from k2rl.trainers.logprobs import TokenLogProbs
from k2rl.trainers.terms import policy_terms, text_terms
from k2rl.trainers.torch_trainer import read_tensors


@dataclass(frozen=True)
class RankConfig:
    """What a rank is started with. `threads` of torch (None: torch's own choice); `timeout_s` is how long a rank waits
    for the others."""

    rank: int
    ranks: int
    model: ModelConfig
    seed: int
    objective: Objective
    optim: OptimConfig
    trainer: TrainerConfig
    threads: int | None = None
    timeout_s: float = 1800.0


class _Loss(torch.nn.Module):
    """What DeepSpeed takes for the model: micro-batches to losses, so that its hooks see every use of a weight."""

    def __init__(self, model: Any, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective
        self.token_logprobs = TokenLogProbs(model)

    def forward(self, kind: str, part: Batch | TextBatch) -> Any:
        if kind == "log_probs":
            return self.token_logprobs(part)
        if isinstance(part, Batch):
            return policy_terms(self.token_logprobs, self.objective, part)
        return text_terms(self.token_logprobs, kind, part)


class Rank:
    """See the module. All ranks are asked for the same at the same time."""

    def __init__(self, config: RankConfig) -> None:
        self.config = config
        if config.threads:
            torch.set_num_threads(config.threads)
        if not torch.cuda.is_available():
            # torch.compile, which DeepSpeed's Muon asks for, takes minutes on a CPU.
            os.environ["TORCHDYNAMO_DISABLE"] = "1"
            os.environ.setdefault("DS_ACCELERATOR", "cpu")

    def meeting_point(self, address: str) -> str:
        """Where the ranks can meet: this machine's address, a port that is free."""
        with socket.socket() as probe:
            probe.bind((address, 0))
            return f"{address}:{probe.getsockname()[1]}"

    def start(self, meeting_point: str) -> None:
        """Meet the others, load the model, hand it to DeepSpeed.

        Raises:
            UserError: the model can't be loaded, or the optimizer can't be had here.
        """
        config = self.config
        host, _, port = meeting_point.rpartition(":")
        os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": port, "LOCAL_RANK": os.environ.get("LOCAL_RANK", "0")}
        os.environ |= {"RANK": str(config.rank), "WORLD_SIZE": str(config.ranks)}
        import deepspeed

        # Its progress is nobody's here; what it has to warn of is.
        deepspeed.logger.setLevel("WARNING")
        cuda = torch.cuda.is_available()
        timeout = timedelta(seconds=config.timeout_s)
        backend = "nccl" if cuda else "gloo"
        torch.distributed.init_process_group(
            backend, init_method=f"tcp://{meeting_point}", rank=config.rank, world_size=config.ranks, timeout=timeout
        )
        deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
        self.model = load_policy(config.model, config.seed).model
        if config.trainer.gradient_checkpointing:
            checkpoint_layers(self.model)
        self.loss = _Loss(self.model, config.objective)
        groups, self._ratios = deepspeed_settings.parameter_groups(self.model, config.optim)
        self.engine, *_ = deepspeed.initialize(
            model=self.loss,
            model_parameters=groups,
            optimizer=None if config.optim.name == "muon" else deepspeed_settings.adamw(groups, config.optim),
            config=deepspeed_settings.settings(config.trainer, config.optim, self.model.dtype),
            dist_init_required=False,
        )
        self._zero = self.engine.optimizer
        self._outbox = Outbox(BUCKET) if config.rank == 0 else None
        self._inbox = Inbox()
        self._bucket_bytes = self._told(self._outbox.bytes if self._outbox else 0)
        self._together = self._one_machine()
        self._stream: Iterator[Bucket | None] = iter(())

    # --- training ----------------------------------------------------------------------------------------

    def step(self, batch: Batch, lr: float) -> dict[str, float]:
        """One update; the same statistics on each rank."""
        if self.config.optim.reset_each_iteration and batch.first_of_iteration:
            self._forget()
        parts: list[tuple[str, Batch | TextBatch]] = [("policy", part) for part in self._parts(batch)]
        parts += [("ptx", part) for part in (self._parts(batch.ptx) if batch.ptx else ())]
        parts += [("critic", part) for part in (self._parts(batch.critic) if batch.critic else ())]
        totals: dict[str, float] = {}
        turns = self._dealt(parts)
        for turn, (kind, part, idle) in enumerate(turns):
            if idle:
                part = replace(part, coefficients_B=torch.zeros_like(part.coefficients_B))
            self.engine.set_gradient_accumulation_boundary(turn == len(turns) - 1)
            terms: Terms = self.engine(kind, part)
            loss, stats = terms
            self.engine.backward(loss * self.config.ranks)
            for key, value in {} if idle else stats.items():
                totals[key] = totals.get(key, 0.0) + float(value)
        for group, ratio in zip(self._zero.param_groups, self._ratios, strict=True):
            group["lr"] = lr * ratio
        self.engine.step()
        everyones: list[dict[str, float]] = [{}] * self.config.ranks
        torch.distributed.all_gather_object(everyones, totals)
        keys = sorted({key for own in everyones for key in own})
        told = {key: sum(own.get(key, 0.0) for own in everyones) for key in keys}
        norm = float(self.engine.get_global_grad_norm() or 0.0)
        if not np.isfinite([norm, *told.values()]).all():
            raise diverged(norm)
        return told | {"train/grad_norm": norm, "train/lr": lr}

    @torch.no_grad()
    def log_probs(self, batch: Batch) -> list[tuple[int, NDArray[np.float32]]]:
        """This rank's share of the rollouts: their rows, and the log-probs of their policy tokens."""
        found = []
        for rows, idle in self._dealt(list(self._rows(batch))):
            part = take(batch, rows)
            logprobs = self.engine("log_probs", part).float().cpu()
            if not idle:
                said = part.mask_B_L.bool()
                found += [(row, logprobs[n][said[n]].numpy()) for n, row in enumerate(rows.tolist())]
        return found

    def release(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _rows(self, batch: Batch | TextBatch) -> Iterator[torch.Tensor]:
        return slices(batch, self.config.trainer.micro_batch_tokens, self.loss.token_logprobs.packed)

    def _parts(self, batch: Any) -> Iterator[Any]:
        return (take(batch, rows) for rows in self._rows(batch))

    def _dealt(self, parts: Sequence[Any]) -> list[Any]:
        """What is this rank's turn by turn, with whether it only keeps the others company."""
        rank, ranks = self.config.rank, self.config.ranks
        own = [_with(part, False) for part in parts[rank::ranks]]
        missing = -(-len(parts) // ranks) - len(own)
        return own + [_with(parts[0], True)] * missing

    # --- weights -----------------------------------------------------------------------------------------

    def begin_buckets(self, trained: bool) -> None:
        """Begin with the first bucket of the full set of weights, or of what is trained as it is."""
        self._stream = self._buckets(trained)

    def next_bucket(self) -> tuple[bool, Bucket | None]:
        """Whether there is a next bucket, and where it lies: rank 0 knows."""
        try:
            return True, next(self._stream)
        except StopIteration:
            return False, None

    @torch.no_grad()
    def _buckets(self, trained: bool) -> Iterator[Bucket | None]:
        for weights in self._by_size(_trained(self.model) if trained else lora.weights_of(self.model)):
            bucket = None
            plain = all(len(weight.parameters) == 1 for weight in weights)
            if self.config.trainer.zero_stage == 3 and self._together and plain:
                yield self._from_shards({weight.name: weight.parameters[0] for weight in weights})
                continue
            with self._whole([p for weight in weights for p in weight.parameters]):
                if self._outbox is not None:
                    (bucket,) = self._outbox.fill((weight.name, weight.value()) for weight in weights)
            yield bucket

    def _from_shards(self, parameters: Mapping[str, Any]) -> Bucket:
        """A bucket into which each rank writes what it has: nothing is gathered, nothing goes through sockets."""
        laid = None
        if self._outbox is not None:
            laid = self._outbox.lay((name, p.dtype, p.ds_shape) for name, p in parameters.items())
        bucket: Bucket = self._told(laid)
        for name, whole in self._outbox.views(bucket) if self._outbox else self._inbox.read(bucket):
            # Equal shares of the flat weight; the last is padded.
            shard = parameters[name].ds_tensor
            first = self.config.rank * shard.ds_numel
            count = max(min(shard.ds_numel, whole.numel() - first), 0)
            whole.view(-1)[first : first + count].copy_(shard[:count])
        return bucket

    def _told(self, what: Any) -> Any:
        """What rank 0 says."""
        said = [what]
        torch.distributed.broadcast_object_list(said, 0)
        return said[0]

    def _one_machine(self) -> bool:
        """Whether every rank sees rank 0's shared memory: what it has written there."""
        bucket, number = None, secrets.randbits(62)
        if self._outbox is not None:
            (bucket,) = self._outbox.fill([("", torch.tensor(number))])
        bucket, number = self._told((bucket, number))
        try:
            seen = self._outbox is not None or [int(t) for _, t in self._inbox.read(bucket)] == [number]
        except OSError:
            seen = False
        all_see = [False] * self.config.ranks
        torch.distributed.all_gather_object(all_see, seen)
        return all(all_see)

    def _by_size(self, weights: Iterable[Weight]) -> Iterator[list[Weight]]:
        """As many at a time as a bucket holds."""
        some, size = list[Weight](), 0
        for weight in weights:
            base = weight.parameters[0]
            # A sharded weight is empty here; `ds_numel` is what it has. A tensor begins at a multiple of 64 bytes.
            own = getattr(base, "ds_numel", base.numel()) * base.element_size() + 64
            if some and size + own > self._bucket_bytes:
                yield some
                some, size = [], 0
            some.append(weight)
            size += own
        yield some

    def _whole(self, parameters: Sequence[torch.Tensor], changed: bool = False) -> AbstractContextManager[Any]:
        """Inside, sharded parameters are whole on every rank; what rank 0 makes of them is kept where `changed`."""
        if self.config.trainer.zero_stage < 3:
            return nullcontext()
        import deepspeed

        gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(
            list(parameters), modifier_rank=0 if changed else None
        )
        return gathered

    # --- checkpoints -------------------------------------------------------------------------------------

    def save(self, folder: str) -> None:
        """Rank 0 writes what is trained, each rank its share of masters and moments."""
        trained = {}
        for weight in _trained(self.model):
            with self._whole(weight.parameters):
                if self.config.rank == 0:
                    trained[weight.name] = weight.value().to("cpu", copy=True).contiguous()
        if self.config.rank == 0:
            save_file(trained, Path(folder) / "weights.safetensors")
        save_file(self._shares(), Path(folder) / self._share_file)
        torch.distributed.barrier()

    def load(self, folder: str) -> None:
        """What `save` wrote, with as many ranks and the same ZeRO stage.

        Raises:
            UserError: it is of another model, or of other shares of it.
        """
        weights = read_tensors(Path(folder) / "weights.safetensors")
        shares = read_tensors(Path(folder) / self._share_file)
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            with self._whole([parameter], changed=True), torch.no_grad():
                if name not in weights or weights[name].numel() != getattr(parameter, "ds_numel", parameter.numel()):
                    raise UserError(f"{folder}: this checkpoint is of another model: {name} is not the same there")
                if self.config.trainer.zero_stage < 3 or self.config.rank == 0:
                    parameter.copy_(weights[name])
        self._zero.refresh_fp32_params()
        self._forget()
        with torch.no_grad():
            for key, master in self._masters():
                if f"master.{key}" not in shares or shares[f"master.{key}"].shape != master.shape:
                    raise UserError(f"{folder}: this checkpoint was made with another optim.name or model.dtype")
                master.copy_(shares[f"master.{key}"])
                prefix = f"state.{key}."
                own = {name.removeprefix(prefix): t for name, t in shares.items() if name.startswith(prefix)}
                if own:
                    self._zero.optimizer.state[master] = {
                        kind: tensor if kind == "step" else tensor.to(master.device) for kind, tensor in own.items()
                    }

    @property
    def _share_file(self) -> str:
        return share_file(self.config.trainer.zero_stage, self.config.rank, self.config.ranks)

    def _masters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """This rank's flat shares of the float32 weights, by what they are in order."""
        flat = (
            "fp32_partitioned_groups_flat" if self.config.trainer.zero_stage == 3 else "single_partition_of_fp32_groups"
        )
        return ((str(n), share) for n, share in enumerate(getattr(self._zero, flat)))

    def _shares(self) -> dict[str, torch.Tensor]:
        found = {}
        for key, master in self._masters():
            found[f"master.{key}"] = master.detach().to("cpu", copy=True)
            for kind, value in self._zero.optimizer.state.get(master, {}).items():
                found[f"state.{key}.{kind}"] = torch.as_tensor(value).detach().to("cpu", copy=True)
        return found

    def close(self) -> None:
        """Leave the others, and nothing in shared memory."""
        self._inbox.close()
        if self._outbox is not None:
            self._outbox.close()
        torch.distributed.destroy_process_group()

    def _forget(self) -> None:
        """Drop the moments; the masters stay."""
        for _, master in self._masters():
            self._zero.optimizer.state.pop(master, None)


def share_file(stage: int, rank: int, ranks: int) -> str:
    """The file of a rank's share of masters and moments, which says what shares it with whom."""
    return f"optimizer-zero{stage}-{rank}-of-{ranks}.safetensors"


def _trained(model: Any) -> Iterator[Weight]:
    return (Weight(name, (p,), p.detach) for name, p in model.named_parameters() if p.requires_grad)


def _with(part: Any, idle: bool) -> Any:
    return (*part, idle) if isinstance(part, tuple) else (part, idle)
