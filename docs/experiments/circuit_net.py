"""Edges between the parts of a pre-norm model: EAP-IG scores, and runs that keep some edges only.

Writers are the embedding, every attention head and every MLP up to the objective's block; readers are
the attention and the MLP of each block, and the objective. A reader's input is the sum of what the
writers before it wrote, so that an edge can be given what another run wrote:

    input_r = corrupted input_r + sum over kept edges (w, r) of (write_w now - write_w corrupted)

EAP-IG scores an edge by (write_w clean - write_w corrupted) . gradient at r, summed over tokens and
rows, the gradient averaged over steps from the corrupted embeddings to the clean ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa_transformer_lens.prefix import PrefixView


class Net:
    """Writers and readers of the blocks of a view, and runs that carry other things along some edges.

    Attributes:
        view: Ends at the objective's block.
        writers: The embedding, then the heads and the MLP of each block.
        readers: Attention and MLP of each block, then the objective.
        sees: How many of the writers come before each reader.
    """

    def __init__(self, view: PrefixView) -> None:
        self.view, blocks, heads = view, view.cfg.n_layers, view.cfg.n_heads
        parts = [*(f"H{head}" for head in range(heads)), " MLP"]
        self.writers = ["embedding", *(f"L{layer}{part}" for layer in range(blocks) for part in parts)]
        self.readers = [f"L{layer} {part}" for layer in range(blocks) for part in ("attention", "MLP")]
        self.readers += ["objective"]
        sees = [1 + (heads + 1) * layer + part * heads for layer in range(blocks) for part in (0, 1)]
        self.sees = [*sees, len(self.writers)]

    @cached_property
    def edges(self) -> Bool[Tensor, "reader writer"]:
        """Which writers each reader sees."""
        return torch.arange(len(self.writers))[None] < torch.tensor(self.sees)[:, None]

    def run(
        self,
        ids: Int[Tensor, "batch token"],
        read: Callable[[int, Tensor], Tensor | None],
        wrote: Callable[[int, Tensor], None] = lambda first, values: None,
        first: Float[Tensor, "batch token d_model"] | None = None,
    ) -> Float[Tensor, "batch token d_model"]:
        """What the objective reads.

        Args:
            ids: Tokens.
            read: Given a reader and its input; what it returns is read instead.
            wrote: Given the first of some writers, and `[writer, batch, token, d_model]`.
            first: What enters block 0 instead of the embedding.
        """

        def embedding(x: Tensor, hook: Any) -> Tensor | None:
            wrote(0, (x if first is None else first)[None])
            return first

        def heads(layer: int, z: Tensor) -> None:
            weights = self.view.blocks[layer].attn.W_O
            wrote(self.sees[2 * layer], torch.einsum("bthe,hed->hbtd", z, weights))

        hooks: list[Any] = [("blocks.0.hook_resid_pre", embedding)]
        for layer in range(self.view.cfg.n_layers):
            block = f"blocks.{layer}"
            hooks += [
                # The norms' own inputs: the residual stream beside them is left alone.
                (f"{block}.ln1.hook_in", lambda x, hook, r=2 * layer: read(r, x)),
                (f"{block}.ln2.hook_in", lambda x, hook, r=2 * layer + 1: read(r, x)),
                (f"{block}.attn.hook_z", lambda z, hook, layer=layer: heads(layer, z)),
                (f"{block}.hook_mlp_out", lambda x, hook, n=self.sees[2 * layer + 1]: wrote(n, x[None])),
            ]
        last = self.view.run_with_hooks(ids, fwd_hooks=hooks)
        found = read(len(self.readers) - 1, last)
        return last if found is None else found

    def recorded(self, ids: Int[Tensor, "batch token"]) -> tuple[Tensor, Tensor]:
        """What every reader read `[reader, ...]`, and every writer wrote `[writer, ...]`."""
        inputs: list[Tensor] = []
        writes: list[Tensor] = []
        with torch.no_grad():
            self.run(ids, lambda r, x: inputs.append(x.clone()), lambda n, x: writes.append(x.clone()))
        return torch.stack(inputs), torch.cat(writes)

    def circuit(
        self,
        ids: Int[Tensor, "batch token"],
        inputs: Tensor,
        writes: Tensor,
        kept: Bool[Tensor, "reader writer"],
    ) -> Float[Tensor, "batch token d_model"]:
        """What the objective reads where the kept edges alone carry this run, the others a recorded one."""
        change, weights = torch.zeros_like(writes), kept.to(writes.dtype)

        def read(r: int, x: Tensor) -> Tensor:
            n = self.sees[r]
            moved: Tensor = weights[r, :n] @ change[:n].flatten(1)
            return inputs[r] + moved.view_as(x)

        def wrote(n: int, values: Tensor) -> None:
            change[n : n + len(values)] = values - writes[n : n + len(values)]

        with torch.no_grad():
            return self.run(ids, read, wrote)

    def scores(
        self,
        clean: Int[Tensor, "batch token"],
        corrupted: Int[Tensor, "batch token"],
        metrics: Sequence[Callable[[Tensor], Tensor]],
        steps: int,
    ) -> Float[Tensor, "metric reader writer"]:
        """EAP-IG of every edge for each metric; with one step EAP, the gradient of the corrupted run."""
        _, there = self.recorded(clean)
        _, here = self.recorded(corrupted)
        change, total = (there - here).flatten(1), torch.zeros(len(metrics), *self.edges.shape)
        for step in range(steps):
            point = here[0] + step / steps * (there[0] - here[0])
            for k, slopes in enumerate(self._slopes(corrupted, point, metrics)):
                total[k] += slopes.flatten(1) @ change.T / steps
        return total * self.edges

    def _slopes(
        self, ids: Tensor, start: Tensor, metrics: Sequence[Callable[[Tensor], Tensor]]
    ) -> Iterator[Float[Tensor, "reader batch token d_model"]]:
        """Each metric's gradient at every reader, block 0 entered by `start`."""
        leaves = [torch.zeros_like(start, requires_grad=True) for _ in self.readers]
        last = self.run(ids, lambda r, x: x + leaves[r], first=start)
        for metric in metrics:
            yield torch.stack(torch.autograd.grad(metric(last).sum(), leaves, retain_graph=True))
