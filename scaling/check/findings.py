"""Findings of the checks of one device, and their table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from scaling.sweep.costs import Speed

Verdict = Literal["ok", "differs", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check's outcome: the measurement, and the remedy if it is not "ok"."""

    check: str
    verdict: Verdict
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All findings on one device of a kind, its speeds, and the FLOP/s of large matrix products by precision."""

    host: str
    device: str
    findings: list[Finding]
    speeds: list[Speed]
    peaks: dict[str, float]


def within(check: str, values: Mapping[str, float], bounds: Mapping[str, float], what: str, remedy: str) -> Finding:
    """A finding on named values, each of which must be finite and at most its bound."""
    bad = [name for name, value in values.items() if not value <= bounds[name]]
    found = ", ".join(f"{name} {value:.2g}" for name, value in values.items())
    limits = ", ".join(f"{name} {bounds[name]:g}" for name in bad)
    return Finding(
        check=check,
        verdict="differs" if bad else "ok",
        found=f"{what}: {found}" + f" (at most {limits})" * bool(bad),
        remedy=remedy if bad else "",
    )


def to_json(reports: list[Report]) -> dict[str, Any]:
    """All reports as JSON values; a plan reads `speeds`."""
    speeds = [speed.model_dump() for report in reports for speed in report.speeds]
    found = [
        {name: getattr(report, name) for name in ("host", "device", "peaks")}
        | {"findings": [dataclasses.asdict(finding) for finding in report.findings]}
        for report in reports
    ]
    return {"format": 1, "reports": found, "speeds": speeds}


def table(report: Report) -> str:
    """The report as a table for a terminal."""
    lines = [f"{report.device} on {report.host}"]
    for finding in report.findings:
        lines.append(f"  {finding.verdict:8}{finding.check:16}{finding.found}")
        lines += [f"{'':10}{'':16}{finding.remedy}"] if finding.remedy else []
    if report.speeds:
        lines.append(f"  {'rung':>8}{'precision':>11}{'ms/step':>10}{'samples/s':>12}{'of the peak':>13}")
    for speed in report.speeds:
        part = speed.flops / speed.step_seconds / report.peaks[speed.precision]
        rate = speed.rows / speed.step_seconds
        lines.append(
            f"  {f'w{speed.width}':>8}{speed.precision:>11}{1e3 * speed.step_seconds:10.2f}{rate:12,.0f}{part:13.1%}"
        )
    return "\n".join(lines)
