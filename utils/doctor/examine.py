"""The examination of a data set: all checks, and the result that the page shows."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from utils.data.data_yaml import Data
from utils.doctor import box_checks, duplicates, file_checks
from utils.doctor.findings import ERROR, LEVELS, WARNING, Finding
from utils.doctor.summary import Summary, summarize
from utils.doctor.survey import Survey
from utils.text import counted


@dataclass(frozen=True)
class Diagnosis:
    """What is known of a data set.

    Attributes:
        findings: the worst ones first. recipe: lines about what train.py would choose.
    """

    data: Data
    imgsz: int
    survey: Survey
    summary: Summary
    findings: list[Finding]
    recipe: tuple[str, ...] = ()

    def of_level(self, level: str) -> list[Finding]:
        """The findings of one level."""
        return [found for found in self.findings if found.level == level]

    @property
    def healthy(self) -> bool:
        """Whether nothing was found that would make training wrong."""
        return not self.of_level(ERROR)

    @property
    def verdict(self) -> str:
        """A sentence."""
        errors, warnings = len(self.of_level(ERROR)), len(self.of_level(WARNING))
        also = f"; {counted(warnings, 'warning')}" if warnings else ""
        if errors:
            return f"Training or its metrics would be wrong: {counted(errors, 'finding')}{also}."
        return f"Nothing would make training wrong{also}."

    @property
    def folder(self) -> Path:
        """The folder of the data YAML."""
        return Path(self.data.yaml).resolve().parent

    def shortened(self, found: Finding) -> Finding:
        """The same finding with the paths in its words relative to `folder`."""
        prefix = f"{self.folder}{os.sep}"
        examples = tuple(replace(item, text=item.text.replace(prefix, "")) for item in found.examples)
        return replace(found, text=found.text.replace(prefix, ""), examples=examples)

    def with_findings(self, more: list[Finding]) -> Diagnosis:
        """The same with more findings."""
        return replace(self, findings=in_order([*self.findings, *more]))


def examine(data: Data, found: Survey, imgsz: int, recipe: tuple[str, ...] = ()) -> Diagnosis:
    """The result of all checks of a surveyed data set whose images will be scaled to `imgsz` pixels."""
    names = data.label_names
    findings = [item for check in (*file_checks.CHECKS, *duplicates.CHECKS) for item in check(found)]
    findings += [item for check in box_checks.CHECKS for item in check(found, names)]
    findings += box_checks.small_boxes(found, names, imgsz)
    return Diagnosis(data, imgsz, found, summarize(found, names, imgsz), in_order(findings), recipe)


def in_order(findings: list[Finding]) -> list[Finding]:
    """The worst findings first, else as they came."""
    return sorted(findings, key=lambda found: list(LEVELS).index(found.level))
