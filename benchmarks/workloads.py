"""The models, tasks and recipes of `vs_trl.py` and `sampler.py`.

`fixed`: random weights, every response takes its whole budget (the end token lies outside the vocabulary).
`quickstart`: nano on the quickstart's mixture. `longtail`: random weights but for one hidden dimension, made so that
the model itself ends most responses soon and few of them late (see `long_tailed`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from arms import VERIFIABLE
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from k2rl import SingleTurnEnv, Task, Verdict
from k2rl.losses import Objective
from k2rl.losses.grpo import Grpo
from k2rl.models import save_policy
from k2rl.recipe import Recipe
from k2rl.recipe_files import load, resolve
from k2rl.types import Split

VOCABULARY = 512
PAD, USER, ASSISTANT, END = range(4)
TEMPLATE = (
    "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Workload:
    """What one iteration samples and trains on, the same on both sides.

    `trl` is TRL's setting that is fastest here (`vs_trl.py --tune` finds it); `steps` are measured.
    """

    name: str
    what: str
    trl: str
    steps: int


WORKLOADS = (
    Workload("quickstart", "nano on the quickstart's mixture, 20 tasks x 16 rollouts", "32", 8),
    Workload(
        "longtail",
        "3.4 M parameters, 8 tasks x 8 rollouts of up to 512 tokens, a long tail of lengths",
        "continuous 16",
        3,
    ),
    Workload("fixed", "3.4 M parameters, 16 tasks x 16 rollouts of 64 tokens", "32", 5),
)


class Words(SingleTurnEnv):
    """Prompts of 16 to 32 random words; the score is the share of even words in the response."""

    budget: ClassVar[int] = 512

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        draw = random.Random(f"{split} {seed}")
        while True:
            yield Task(" ".join(f"w{draw.randrange(END + 1, VOCABULARY)}" for _ in range(draw.randint(16, 32))))

    def verify(self, task: Task, response: str) -> Verdict:
        words = response.split()
        return Verdict.of(sum(int(w[1:]) % 2 == 0 for w in words) / max(len(words), 1))


class Alternating(Grpo):
    """GRPO with the rewards 0, 1, 0, 1, … in each group: what a verifier says does not matter at fixed length."""

    def advantages(self, rewards: Sequence[float]) -> list[float]:
        return super().advantages([float(k % 2) for k in range(len(rewards))])


def goal(name: str) -> Objective | None:
    """The objective in place of the recipe's."""
    return Alternating() if name == "fixed" else None


def recipe(name: str, folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a workload. `folder` takes the model it makes, if it makes one."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    settings = [
        *("optim.lr={start: 1.0e-6}", "run.eval_tasks=0"),
        "trainer.updates_per_iteration=1",
        *overrides,
    ]
    if name == "quickstart":
        quickstart = load(Recipe, "quickstart", [*VERIFIABLE, *settings])
        quickstart.objective = {"name": "grpo"}
        return quickstart
    tasks, group, budget = (8, 8, 512) if name == "longtail" else (16, 16, 64)
    made = folder / name
    if not made.exists():
        save_policy(model(name), tokenizer(name), made)
    data = {
        "model": {"path": str(made)},
        "envs": {"words": {"id": "workloads:Words", "pool": 500, "budget": {"tokens": budget}}},
        "rollout": {"tasks": tasks, "group_size": group},
        "objective": {"name": "grpo"},
        "trainer": {"micro_batch_tokens": 2048},
    }
    return resolve(Recipe, data, settings)


def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A word per id. At fixed length the end token is one the model can't say."""
    end = VOCABULARY if name == "fixed" else END
    words = {f"w{i}": i for i in range(END if name == "fixed" else END + 1, VOCABULARY)}
    special = {"<|pad|>": PAD, "<|user|>": USER, "<|assistant|>": ASSISTANT, "<|end|>": end}
    inner = Tokenizer(models.WordLevel(special | words, unk_token="<|pad|>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def model(name: str) -> Any:
    """A random Llama of 3.4 million parameters."""
    torch.manual_seed(0)
    made = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=688,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=1024,
            tie_word_embeddings=False,
            pad_token_id=PAD,
            bos_token_id=None,
            eos_token_id=VOCABULARY if name == "fixed" else END,
        )
    ).eval()
    if name == "longtail":
        long_tailed(made)
    return made


def long_tailed(made: Any, long: int = 64, ends: float = 1 / 40, turns: float = 1 / 360, late: float = 1 / 400) -> None:
    """Make a response end soon, or late if one of the last `long` words of the vocabulary has come up.

    One hidden dimension carries a bit from the latest word past all layers to the logits (is it one of those?), another
    one a constant. After an ordinary word the response ends with probability `ends` and a long word follows with
    probability `turns`; after a long word it ends with probability `late`, else another long word follows. Lengths are
    thus a geometric distribution with mean 40, and for one response in ten a second one with mean 400 on top.
    """
    bit, constant = 0, 1
    classes = torch.full((VOCABULARY,), PAD)
    classes[END], classes[END + 1 : -long], classes[-long:] = 1, 2, 3
    counts = classes.bincount()[classes]
    never = 1e-9
    after_ordinary = torch.tensor([never, ends, 1 - ends - turns, turns])
    after_long = torch.tensor([never, late, never, 1 - late])
    # Both dimensions are 8 (or -8) and outweigh the rest, so the last norm makes them about this large.
    size = (made.config.hidden_size / 2) ** 0.5
    low, high = ((p[classes] / counts).log() / size for p in (after_ordinary, after_long))
    with torch.no_grad():
        for layer in made.model.layers:
            layer.self_attn.o_proj.weight[[bit, constant]] = 0.0
            layer.mlp.down_proj.weight[[bit, constant]] = 0.0
        made.model.embed_tokens.weight[:, constant] = 8.0
        made.model.embed_tokens.weight[:, bit] = (classes == 3).float() * 16 - 8
        made.lm_head.weight[:, constant] = (high + low) / 2
        made.lm_head.weight[:, bit] = (high - low) / 2
