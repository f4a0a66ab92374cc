"""One layer's input in numbers, and the layers that read the same input, gathered over the blocks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmint8.analysis.recorder import InputStatistics

#: A name such as model.layers.3.self_attn.q_proj: the block, and the projection in it.
_IN_BLOCK = re.compile(r"^(?P<block>(?:.+?\.)?\d+)\.(?P<projection>.+)$")


@dataclass(frozen=True)
class LayerOutliers:
    """The input of one layer.

    block: its name, such as model.layers.3; None outside of a stack of blocks.
    projection: the name within the block, with `*` for numbers. features: K. positions: rows seen.
    normalized: whether a norm made the input.
    largest: the largest magnitude, in dimension `largest_dimension` at position `largest_position`;
    largest_later: the largest beyond the first position, None if there is none.
    columns: dimensions that are outliers at some position. elements: outlier elements.
    affected: positions with an outlier.
    """

    name: str
    block: str | None
    projection: str
    features: int
    positions: int
    normalized: bool
    largest: float
    largest_dimension: int
    largest_position: int
    largest_later: float | None
    columns: int
    elements: int
    affected: int

    @property
    def columns_share(self) -> float:
        """Outlier columns over the whole text, of all columns."""
        return self.columns / self.features

    @property
    def elements_share(self) -> float:
        """Outlier elements of all elements."""
        return self.elements / (self.positions * self.features)

    @property
    def affected_share(self) -> float:
        """Positions with an outlier, of all positions."""
        return self.affected / self.positions

    def to_dict(self) -> dict[str, Any]:
        """Fields and shares."""
        return vars(self) | {
            "columns_share": self.columns_share,
            "elements_share": self.elements_share,
            "affected_share": self.affected_share,
        }


@dataclass(frozen=True)
class InputGroup:
    """Layers that read the same input, in all blocks: q_proj, k_proj and v_proj, say.

    projections: their names within a block. hidden: whether the input is a hidden state.
    members: the layers of the first of the projections. blocks: their names, B of them.
    magnitude: float32 `[B, K]`, count: int64 `[B, K]`, positions: of each block, see `InputStatistics`.
    """

    projections: tuple[str, ...]
    hidden: bool
    members: tuple[LayerOutliers, ...]
    blocks: tuple[str, ...]
    magnitude: Tensor
    count: Tensor
    positions: tuple[int, ...]

    @property
    def name(self) -> str:
        """The projections, those of one parent in short: self_attn.q_proj, k_proj, v_proj."""
        parts, parent = [], None
        for projection in self.projections:
            above, _, last = projection.rpartition(".")
            parts.append(last if above == parent else projection)
            parent = above
        return ", ".join(parts)

    @property
    def largest(self) -> LayerOutliers:
        """The layer with the largest magnitude."""
        return max(self.members, key=lambda layer: layer.largest)

    @property
    def worst(self) -> LayerOutliers:
        """The layer with the largest share of outlier columns; of several, that with the most elements."""
        return max(self.members, key=lambda layer: (layer.columns_share, layer.elements_share))

    def mean(self, share: str) -> float:
        """The mean of a share over the layers, by the name of the property."""
        return float(sum(getattr(layer, share) for layer in self.members)) / len(self.members)

    def to_dict(self) -> dict[str, Any]:
        """The numbers of a row of the table."""
        return {
            "projections": list(self.projections),
            "hidden_state": self.hidden,
            "features": self.members[0].features,
            "layers": len(self.members),
            "largest": self.largest.largest,
            "largest_layer": self.largest.name,
            "largest_later": max((m.largest_later for m in self.members if m.largest_later), default=None),
            "columns_share": self.mean("columns_share"),
            "columns_share_worst": self.worst.columns_share,
            "worst_layer": self.worst.name,
            "elements_share": self.mean("elements_share"),
            "affected_share": self.mean("affected_share"),
        }


def describe(name: str, statistics: InputStatistics) -> LayerOutliers:
    """The numbers of one layer."""
    match = _IN_BLOCK.match(name)
    later = statistics.position_magnitude[1:]
    return LayerOutliers(
        name=name,
        block=match["block"] if match else None,
        projection=re.sub(r"(?<=\.)\d+(?=\.|$)", "*", match["projection"] if match else name),
        features=statistics.features,
        positions=statistics.positions,
        normalized=statistics.normalized,
        largest=float(statistics.magnitude.max()),
        largest_dimension=int(statistics.magnitude.argmax()),
        largest_position=int(statistics.position_magnitude.argmax()),
        largest_later=float(later.max()) if len(later) else None,
        columns=int((statistics.count > 0).sum()),
        elements=int(statistics.count.sum()),
        affected=statistics.affected,
    )


def group_layers(
    layers: Sequence[LayerOutliers], statistics: Mapping[str, InputStatistics], hidden_size: int | None
) -> tuple[InputGroup, ...]:
    """Gather layers by projection and width, and projections by their input."""
    by_projection: dict[tuple[str, int], list[LayerOutliers]] = {}
    for layer in layers:
        by_projection.setdefault((layer.projection, layer.features), []).append(layer)
    gathered: list[tuple[list[str], list[LayerOutliers]]] = []
    for (projection, _), members in by_projection.items():
        same = next((g for g in gathered if _same_input(g[1], members, statistics)), None)
        if same:
            same[0].append(projection)
        else:
            gathered.append(([projection], members))
    return tuple(_group(tuple(names), members, statistics, hidden_size) for names, members in gathered)


def _same_input(
    left: list[LayerOutliers], right: list[LayerOutliers], statistics: Mapping[str, InputStatistics]
) -> bool:
    """Whether two projections were given the same tensors, told by all their statistics."""
    if len(left) != len(right):
        return False
    return all(
        a.block == b.block
        and a.positions == b.positions
        and torch.equal(statistics[a.name].magnitude, statistics[b.name].magnitude)
        and torch.equal(statistics[a.name].count, statistics[b.name].count)
        for a, b in zip(left, right, strict=True)
    )


def _group(
    projections: tuple[str, ...],
    members: list[LayerOutliers],
    statistics: Mapping[str, InputStatistics],
    hidden_size: int | None,
) -> InputGroup:
    by_block: dict[str, list[InputStatistics]] = {}
    for member in members:
        by_block.setdefault(member.block or member.name, []).append(statistics[member.name])
    inside = all(member.block is not None and member.normalized for member in members)
    return InputGroup(
        projections=projections,
        hidden=inside and members[0].features == hidden_size,
        members=tuple(members),
        blocks=tuple(by_block),
        magnitude=torch.stack(
            [torch.stack([s.magnitude.cpu() for s in of_block]).amax(0) for of_block in by_block.values()]
        ),
        count=torch.stack(
            [torch.stack([s.count.cpu() for s in of_block]).sum(0) for of_block in by_block.values()]
        ),
        positions=tuple(sum(s.positions for s in of_block) for of_block in by_block.values()),
    )
