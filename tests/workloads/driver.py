"""Drivers of the workload programs: each class drives one program, each method sends one of its commands.

with Phases() as phases:
    truth = phases.write("anon", "random", seed=7, count=500, threads=2)
    truth.pages                 # exactly the page numbers written
    truth.threads[tid]          # by this thread
"""

from __future__ import annotations

from .crowd import Crowd
from .pages import PAGE_BYTES, Area, Pages, Touched, digest, expand, union
from .phases import DEFAULT_AREAS, Phases
from .process import Answer, Program, WorkloadError, build
from .sensitive import Checksum, ChecksumResult, Child, Cost, Hold
from .special import Churn, Sharers, Uring
from .timed import (
    Flushed,
    Flusher,
    Scan,
    ScanFloor,
    Sweep,
    SweepTime,
    Writer,
    WriteRun,
    expected_distinct,
)
from .writer_initramfs import guest_parameters, make_initramfs

__all__ = [
    "DEFAULT_AREAS",
    "PAGE_BYTES",
    "Answer",
    "Area",
    "Checksum",
    "ChecksumResult",
    "Child",
    "Churn",
    "Cost",
    "Crowd",
    "Flushed",
    "Flusher",
    "Hold",
    "Pages",
    "Phases",
    "Program",
    "Scan",
    "ScanFloor",
    "Sharers",
    "Sweep",
    "SweepTime",
    "Touched",
    "Uring",
    "WorkloadError",
    "WriteRun",
    "Writer",
    "build",
    "digest",
    "expand",
    "expected_distinct",
    "guest_parameters",
    "make_initramfs",
    "union",
]
