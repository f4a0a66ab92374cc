"""The outliers of a model: what the statistics of its inputs say, and the criterion of the paper.

The criterion (section 4.1 of LLM.int8(), arXiv 2208.07339) asks for hidden dimensions that are outliers
systematically: `|x| >= 6` in the same dimension in at least 25 % of the layers, and at 6 % of all positions
of all hidden states. The reading taken here:

- A hidden state is what a norm gives to the query, key and value projections or to the first layer of the
  feed-forward network. Layers that read one tensor read one hidden state. The paper names the output
  projection too; its input consists of heads, whose dimension i has nothing to do with dimension i of the
  hidden state, so it appears in the tables but does not count. Nor does the second feed-forward layer, which
  the paper leaves out.
- A layer is a block of the transformer. It is affected if the dimension is an outlier at one position of one
  of its hidden states.
- Positions are those of all hidden states together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmint8.analysis.inputs import InputGroup, LayerOutliers, describe, group_layers
from llmint8.analysis.recorder import InputStatistics
from llmint8.errors import InputError

#: The paper's criterion: shares of layers and of positions in which a dimension must be an outlier.
LAYER_SHARE, POSITION_SHARE = 0.25, 0.06


@dataclass(frozen=True)
class Dimension:
    """A dimension of the hidden state.

    layers: share of the blocks in which it is an outlier somewhere. positions: share of the positions of all
    hidden states. largest: its largest magnitude. shared: whether it meets the paper's criterion.
    """

    index: int
    layers: float
    positions: float
    largest: float
    shared: bool


@dataclass(frozen=True)
class OutlierReport:
    """What `analyze` found.

    layers: every layer, in the model's order. groups: those that read the same input, over the blocks.
    blocks: names of the model's blocks. hidden_size: K of the hidden state, None if no layer reads one.
    dimensions: those of the hidden state that are outliers anywhere, the furthest spread first.
    """

    threshold: float
    layers: tuple[LayerOutliers, ...]
    groups: tuple[InputGroup, ...]
    blocks: tuple[str, ...]
    hidden_size: int | None
    dimensions: tuple[Dimension, ...]

    @property
    def shared(self) -> tuple[Dimension, ...]:
        """The dimensions that meet the paper's criterion."""
        return tuple(d for d in self.dimensions if d.shared)

    @property
    def widest(self) -> Dimension | None:
        """The dimension that is spread furthest, a shared one if there is any: the paper's "most common"."""
        return self.dimensions[0] if self.dimensions else None

    @property
    def mostly_outliers(self) -> tuple[LayerOutliers, ...]:
        """Layers in which more than half of the columns are outliers somewhere."""
        return tuple(layer for layer in self.layers if layer.columns_share > 0.5)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tensors, for JSON."""
        return {
            "threshold": self.threshold,
            "blocks": len(self.blocks),
            "hidden_size": self.hidden_size,
            "shared_dimensions": [vars(d) for d in self.shared],
            "widest_dimension": vars(self.widest) if self.widest else None,
            "mostly_outliers": [layer.name for layer in self.mostly_outliers],
            "inputs": [group.to_dict() for group in self.groups],
            "layers": [layer.to_dict() for layer in self.layers],
        }


def analyze(statistics: Mapping[str, InputStatistics], threshold: float) -> OutlierReport:
    """Describe the statistics of a recorder, `analyze(recorder.statistics, recorder.threshold)`.

    Raises InputError if there are none, and for an input that is not finite.
    """
    if not statistics:
        raise InputError("no layer was called while the recorder was active; run the model inside of it")
    layers = []
    for name, of_layer in statistics.items():
        if not bool(of_layer.magnitude.isfinite().all()):
            raise InputError(f"the input of {name} holds a NaN or an infinity; check the weights before it")
        layers.append(describe(name, of_layer))
    widths = Counter(layer.features for layer in layers if layer.normalized and layer.block is not None)
    hidden_size = widths.most_common(1)[0][0] if widths else None
    groups = group_layers(layers, statistics, hidden_size)
    blocks = tuple(dict.fromkeys(layer.block for layer in layers if layer.block is not None))
    return OutlierReport(
        threshold, tuple(layers), groups, blocks, hidden_size, _dimensions([g for g in groups if g.hidden])
    )


def _dimensions(hidden: list[InputGroup]) -> tuple[Dimension, ...]:
    if not hidden:
        return ()
    affected: dict[str, Tensor] = {}
    for group in hidden:
        for block, count in zip(group.blocks, group.count, strict=True):
            affected[block] = affected.get(block, torch.zeros_like(count, dtype=torch.bool)) | (count > 0)
    layers = torch.stack(list(affected.values())).sum(0).tolist()
    count = torch.stack([group.count.sum(0) for group in hidden]).sum(0).tolist()
    largest = torch.cat([group.magnitude for group in hidden]).amax(0).tolist()
    positions = sum(sum(group.positions) for group in hidden)
    found = []
    for index in (i for i, n in enumerate(count) if n):
        shares = layers[index] / len(affected), count[index] / positions
        shared = shares[0] >= LAYER_SHARE and shares[1] >= POSITION_SHARE
        found.append(Dimension(index, *shares, largest[index], shared))
    return tuple(sorted(found, key=lambda d: (not d.shared, -d.layers, -d.positions, d.index)))
