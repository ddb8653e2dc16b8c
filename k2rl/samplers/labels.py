"""Log-probs of the next token after many prompts that begin alike: what they share is computed once.

The prompts are sorted into a tree by what they have in common; each level of it is a forward pass that goes on from the
keys and values of the level above. A level that saves too few tokens is not worth its pass, and is left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from k2rl.samplers.prefill import Prefix, prefill

Ids = tuple[int, ...]

_LEVELS = 3
"""Levels of shared beginnings at most: the judge's instructions, the task, the response shown first."""
_PASS = 384
"""Tokens a further level must save: what a pass of a small model costs whatever is in it."""
_EDGE = 16
"""Tokens a shared beginning must save: what a further row costs."""
_COLUMNS = {"cpu": 2048}
"""Rows times columns of a pass at most, by device: on a CPU, what stays in its caches."""
_COLUMNS_ELSEWHERE = 32768


@dataclass
class _Node:
    """Prompts with the same first `depth` tokens; one without kids is the whole of one prompt."""

    ids: Ids
    depth: int
    kids: list[_Node] = field(default_factory=list)
    height: int = 0


def score_labels(
    model: Any,
    prompts: Sequence[Sequence[int]],
    label_ids: Sequence[int],
    pad_id: int,
    rows: int,
    threads: Executor | None = None,
    workers: int = 1,
) -> NDArray[np.float32]:
    """Log-probs at T = 1, over the full vocabulary, of each label as the next token: shape (P, N).

    No prompt may be empty. `rows` is the most rows of a pass; with `threads`, `workers` parts of the prompts are under
    way at once.
    """
    scores = np.empty((len(prompts), len(label_ids)), dtype=np.float32)
    places: dict[Ids, list[int]] = defaultdict(list)
    for place, prompt in enumerate(prompts):
        places[tuple(prompt)].append(place)
    ordered = sorted(places)
    shared = [_shared(a, b) for a, b in pairwise(((), *ordered))]
    labels = torch.tensor(list(label_ids), device=model.device)

    @torch.inference_mode()
    def run(part: range) -> None:
        root = _tree([ordered[i] for i in part], [shared[i] for i in part])
        for ids, logprobs in _descend(root.kids, partial(prefill, model, pad_id=pad_id), labels, rows):
            scores[places[ids]] = logprobs

    parts = _parts([len(ids) - n for ids, n in zip(ordered, shared, strict=True)], workers)
    # Consumed by `list`, so that what a part raises is raised here.
    list(map(run, parts) if threads is None else threads.map(run, parts))
    return scores


def _shared(a: Ids, b: Ids) -> int:
    """How many tokens two prompts have in common at their beginning, at least one of each left out: the logits after
    a prompt come from a token of its own."""
    most = max(min(len(a), len(b)) - 1, 0)
    return next((n for n in range(most) if a[n] != b[n]), most)


def _parts(costs: Sequence[int], workers: int) -> list[range]:
    """Consecutive prompts of about the same cost for each worker; fewer parts where there is little to do."""
    total = sum(costs)
    count = max(1, min(workers, total // _PASS))
    part_of = [(done - cost) * count // total for done, cost in zip(accumulate(costs), costs, strict=True)]
    starts = [i for i, part in enumerate(part_of) if i == 0 or part != part_of[i - 1]]
    return [range(a, b) for a, b in pairwise([*starts, len(costs)])]


# --- what is shared ------------------------------------------------------------------------------------------


def _tree(ordered: Sequence[Ids], shared: Sequence[int]) -> _Node:
    """A root above the prompts; `shared[i]` tokens at the beginning of the i-th are those of the one before."""
    root = _Node((), 0)
    path = [root]
    for i, ids in enumerate(ordered):
        _close(path, shared[i] if i else 0)
        path[-1].kids.append(_Node(ids, len(ids)))
        path.append(path[-1].kids[-1])
    _close(path, 0)
    for height in range(_LEVELS, 0, -1):
        if _saved(root, height) < _PASS:
            _dissolve(root, height)
    return root


def _close(path: list[_Node], common: int) -> None:
    """Leave the nodes of the path that go beyond `common`, until one ends there: what comes next is its kid."""
    while path[-1].depth > common:
        node = path.pop()
        if path[-1].depth < common:
            path[-1].kids[-1] = between = _Node(node.ids, common, [node])
            path.append(between)
        if node.kids:
            node.height = 1 + max(kid.height for kid in node.kids)
            saved = (node.depth - path[-1].depth) * (len(node.kids) - 1)
            if node.height > _LEVELS or saved < _EDGE:
                path[-1].kids[-1:] = node.kids


def _saved(node: _Node, height: int) -> int:
    """Tokens saved by the nodes of a height below `node`."""
    return sum(
        (kid.depth - node.depth) * (len(kid.kids) - 1) if kid.height == height else _saved(kid, height)
        for kid in node.kids
    )


def _dissolve(node: _Node, height: int) -> None:
    """Hand the kids of the nodes of a height to their parents."""
    for kid in node.kids:
        _dissolve(kid, height)
    node.kids = [k for kid in node.kids for k in (kid.kids if kid.height == height else [kid])]


# --- passes --------------------------------------------------------------------------------------------------


def _descend(
    nodes: Sequence[_Node],
    forward: Callable[..., tuple[Prefix, torch.Tensor]],
    labels: torch.Tensor,
    rows: int,
    prefix: Prefix | None = None,
    parents: Sequence[int] = (),
) -> Iterator[tuple[Ids, NDArray[np.float32]]]:
    """The prompts below `nodes` with their labels' log-probs. Chunk by chunk: keys and values of one chunk a level are
    there at a time."""
    room = _COLUMNS.get(labels.device.type, _COLUMNS_ELSEWHERE)
    begun = [prefix.lengths[p] if prefix else 0 for p in parents] or [0] * len(nodes)
    columns = prefix.visible.shape[1] if prefix else 0
    lengths = [node.depth - begin for node, begin in zip(nodes, begun, strict=True)]
    for inner in (True, False):
        of_kind = [i for i, node in enumerate(nodes) if bool(node.kids) == inner]
        for chunk in _chunks(of_kind, lengths, columns, rows, room):
            after, logits_P_V = forward(
                prompts=[nodes[i].ids[begun[i] : nodes[i].depth] for i in chunk],
                keep=inner,
                prefix=prefix,
                parents=[parents[i] for i in chunk] if prefix else (),
            )
            if inner:
                kids = [(kid, row) for row, i in enumerate(chunk) for kid in nodes[i].kids]
                yield from _descend([k for k, _ in kids], forward, labels, rows, after, [row for _, row in kids])
            else:
                logprobs = logits_P_V.float().log_softmax(-1)[:, labels].cpu().numpy()
                yield from ((nodes[i].ids, row) for i, row in zip(chunk, logprobs, strict=True))


def _chunks(of_kind: Sequence[int], lengths: Sequence[int], columns: int, rows: int, room: int) -> Iterator[list[int]]:
    """Chunks of about one length, within `rows` and `room`; one row is always possible."""
    chunk: list[int] = []
    for i in sorted(of_kind, key=lambda i: lengths[i]):
        if chunk and (len(chunk) >= rows or (len(chunk) + 1) * (columns + lengths[i]) > room):
            yield chunk
            chunk = []
        chunk.append(i)
    if chunk:
        yield chunk
