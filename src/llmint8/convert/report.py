"""What a conversion did, as data, as JSON types and as a table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table


def human_bytes(count: float) -> str:
    """1536 -> "1.5 KiB"."""
    if abs(count) < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB"):
        count /= 1024
        if abs(count) < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} GiB"


@dataclass(frozen=True)
class Row:
    """One module: its name, its class, "int8", "4-bit" or the reason why it stayed, bytes before and after,
    and how many of its columns have 16-bit weights."""

    name: str
    kind: str
    decision: str
    bytes_before: int
    bytes_after: int
    int16_columns: int = 0

    @property
    def converted(self) -> bool:
        """Whether the module was quantised."""
        return self.decision in ("int8", "4-bit")


@dataclass(frozen=True)
class ConversionReport:
    """Every module that holds a matrix, with what became of it; bytes of the whole model."""

    rows: tuple[Row, ...]
    bytes_before: int
    bytes_after: int

    @property
    def converted(self) -> tuple[Row, ...]:
        """The modules that were quantised."""
        return tuple(row for row in self.rows if row.converted)

    @property
    def skipped(self) -> tuple[Row, ...]:
        """The modules that stayed, each with its reason in `decision`."""
        return tuple(row for row in self.rows if not row.converted)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        return {
            "converted": [vars(row) for row in self.converted],
            "skipped": [vars(row) for row in self.skipped],
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
        }

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        decisions = {row.decision for row in self.converted}
        kind = "4 bits" if decisions == {"4-bit"} else "int8"
        table = Table(title=f"Conversion to {kind}", title_justify="left")
        for heading in ("module", "class", "decision"):
            table.add_column(heading, overflow="fold")  # a name that is cut off names nothing
        for heading in ("count", "before", "after"):
            table.add_column(heading, justify="right", no_wrap=True)
        for name, kind, decision, columns, count, before, after in self._groups():
            if columns:
                decision = f"{decision}, {columns} columns int16"
            table.add_row(name, kind, decision, str(count), human_bytes(before), human_bytes(after))
        table.add_section()
        before, after = self.bytes_before, self.bytes_after
        share = f" ({after / before:.0%})" if before else ""
        table.add_row("whole model", "", "", "", human_bytes(before), human_bytes(after) + share)
        yield table

    def __str__(self) -> str:
        console = Console(width=120, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return capture.get()

    def _groups(self) -> Iterator[tuple[str, str, str, int, int, int, int]]:
        """Rows that differ only in their layer number, as one: "model.layers.*.mlp.up_proj"."""
        groups: dict[tuple[str, str, str], list[Row]] = {}
        for row in self.rows:
            pattern = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", row.name)
            groups.setdefault((pattern, row.kind, row.decision), []).append(row)
        for (pattern, kind, decision), rows in groups.items():
            name = rows[0].name if len(rows) == 1 else pattern
            before, after = sum(r.bytes_before for r in rows), sum(r.bytes_after for r in rows)
            yield name, kind, decision, sum(r.int16_columns for r in rows), len(rows), before, after
