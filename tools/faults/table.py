"""A row of the table of faults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """`kept` of `tried` faults ended as promised."""

    fault: str
    promise: str
    tried: int
    kept: int
    detail: str

    @staticmethod
    def table(rows: Sequence[Row]) -> str:
        lines = ["| fault | promised | kept | |", "| --- | --- | --- | --- |"]
        lines += [f"| {row.fault} | {row.promise} | {row.kept} of {row.tried} | {row.detail} |" for row in rows]
        return "\n".join(lines)
