"""Capabilities that root lacks, by the mask in /proc/self/status."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from redirty.collector.bpf import probe_support
from redirty.collector.errors import RedirtyError
from redirty.collector.linux import capabilities, privileges

ALL = (1 << 41) - 1
ADMIN, PERFMON, BPF, PTRACE = 1 << 21, 1 << 38, 1 << 39, 1 << 19


def test_the_mask_is_found_whatever_the_process_is_called() -> None:
    status = (
        b"Name:\tx\\nCapEff:\t0\rCapEff:\t1\x0bCapEff: 2\nCapPrm:\t3\nCapEff:\t000001ffffffffff\n"
    )
    assert capabilities.effective(status) == ALL
    own = Path("/proc/self/status").read_bytes()
    assert f"{capabilities.effective(own):016x}".encode() in own


@pytest.mark.parametrize(
    ("mask", "lacking"),
    [
        (ALL, []),
        (ADMIN, []),
        (BPF | PERFMON, []),
        (ALL & ~BPF & ~PERFMON, []),
        (ALL & ~BPF & ~PERFMON & ~ADMIN, ["CAP_BPF", "CAP_PERFMON"]),
        (ALL & ~BPF & ~ADMIN, ["CAP_BPF"]),
        (PERFMON, ["CAP_BPF"]),
        (BPF, ["CAP_PERFMON"]),
        (0, ["CAP_BPF", "CAP_PERFMON"]),
    ],
)
def test_sys_admin_includes_the_capabilities_for_bpf(mask: int, lacking: list[str]) -> None:
    assert capabilities.missing(capabilities.TRACING, mask) == lacking


@pytest.mark.parametrize(("mask", "lacking"), [(ALL, []), (ALL & ~PTRACE, ["CAP_SYS_PTRACE"])])
def test_sys_admin_does_not_include_sys_ptrace(mask: int, lacking: list[str]) -> None:
    assert capabilities.missing(capabilities.PTRACE, mask) == lacking


@pytest.fixture
def root_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process appear to be root with CAP_SYS_PTRACE alone."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(capabilities, "effective", lambda _: PTRACE)


@pytest.mark.usefixtures("root_without")
def test_a_lacking_capability_is_named_instead_of_a_hardened_kernel() -> None:
    with pytest.raises(RedirtyError) as error:
        privileges.require_root()
    reason = probe_support._reason("BPF on kprobes", PermissionError(1, "Operation not permitted"))
    for text in (str(error.value), reason):
        assert "needs CAP_BPF and CAP_PERFMON, which root does not have here" in text
        assert "--cap-add" in text
        assert "hardened" not in text


def test_unknown_capabilities_are_not_reported_as_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    def strange(_: bytes) -> int:
        raise ValueError

    monkeypatch.setattr(capabilities, "effective", strange)
    assert capabilities.root_lacks(capabilities.TRACING) is None


def test_root_of_a_user_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "effective", lambda _: ALL)
    monkeypatch.setattr(capabilities, "_FIRST_USER_NAMESPACE", 1)
    assert "user namespace" in (capabilities.root_lacks(capabilities.TRACING) or "")
