"""The scripts that build and start the Vagrant box, as far as they can be tested without building it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.vm import initramfs, kernels
from vagrant import accel, box_check, rootfs, wheels
from vagrant.commands import HERE, PROJECT, StepError, Steps, last_written, run


def test_tests_and_box_read_one_table_of_kernels() -> None:
    assert kernels.TABLE == HERE / "kernels.toml"
    assert {"5.10", "6.1", "6.12", "7.2"} <= set(kernels.KERNELS)
    text = (HERE / "Vagrantfile").read_text(encoding="utf-8")
    default = re.search(r'^default = "(.*)"$', text, re.MULTILINE)
    assert default is not None
    assert default[1] == box_check.DEFAULT
    assert box_check.DEFAULT in kernels.KERNELS


def test_the_version_of_a_kernel_is_read_from_its_header(tmp_path: Path) -> None:
    banner = b"6.12.107+deb13-amd64 (x@y) #1 SMP PREEMPT_DYNAMIC Debian 6.12.107-1 (2026-01-02)\0"
    image = bytearray(0x1000)
    image[0x20E:0x210] = (0x300).to_bytes(2, "little")
    image[0x500 : 0x500 + len(banner)] = banner
    kernel = kernels.Kernel("6.12", "6.12.107+deb13-amd64", tmp_path)
    kernel.image.parent.mkdir()
    kernel.image.write_bytes(image)
    assert kernel.debian_version == "6.12.107-1"
    image[0x500:0x503] = b"x\0\0"
    kernel.image.write_bytes(image)
    with pytest.raises(kernels.KernelError, match="not a kernel of Debian: x"):
        _ = kernel.debian_version


def test_the_box_has_the_packages_that_the_setup_would_install() -> None:
    listed = rootfs.packages()
    text = (PROJECT / ".ci/setup").read_text(encoding="utf-8")
    for variable in ("run_packages", "test_packages"):
        expected = re.search(rf'{variable}="([^"]*)"', text)
        assert expected is not None
        assert set(expected[1].split()) <= set(listed)


def test_an_unknown_level_of_setup_is_refused() -> None:
    done = subprocess.run([PROJECT / ".ci/setup", "all"], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (1, b"redirty: no such level: all\n")


def test_the_box_has_no_modules_for_physical_devices(tmp_path: Path) -> None:
    names = (
        "kernel/fs/ext4/ext4.ko", "kernel/net/9p/9pnet.ko", "kernel/drivers/block/loop.ko",
        "kernel/drivers/net/virtio_net.ko", "kernel/drivers/virtio/virtio.ko",
        "modules.order", "modules.builtin",
    )  # fmt: skip
    unwanted = (
        "kernel/sound/core/snd.ko", "kernel/drivers/gpu/drm/drm.ko",
        "kernel/drivers/net/ethernet/intel/e1000.ko", "vdso/vdso64.so",
    )  # fmt: skip
    source = tmp_path / "source"
    for name in (*names, *unwanted):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).touch()
    target = tmp_path / "target"
    shutil.copytree(source, target, ignore=rootfs.without_physical_devices(source))
    copied = {str(p.relative_to(target)) for p in target.rglob("*") if p.is_file()}
    assert copied == set(names)


def test_the_wheelhouse_has_what_pyproject_asks_for() -> None:
    expected = set(re.findall(r"^([\w-]+)==", wheels.LOCK.read_text(), re.MULTILINE))
    assert {"numpy", "pandas", "pyarrow", "pyroute2", "pytest", "setuptools"} <= expected
    assert {"bookworm": "3.11"}[rootfs.SUITE] == wheels.PYTHON


@pytest.mark.parametrize("script", ["init.sh", "provision.sh"])
def test_shell_scripts_parse(script: str) -> None:
    subprocess.run(["sh", "-n", HERE / script], check=True)


def test_modules_can_be_chosen(tmp_path: Path) -> None:
    kernel = kernels.Kernel("x", "1", tmp_path)
    kernel.modules.mkdir(parents=True)
    (kernel.modules / "modules.dep").write_text("a/b.ko: a/c.ko\na/c.ko:\na/d.ko:\n")
    (kernel.modules / "modules.builtin").write_text("a/e.ko\n")
    found = initramfs.module_files(kernel, ["b", "e"])
    assert [path.name for path in found] == ["c.ko", "b.ko"]
    with pytest.raises(initramfs.InitramfsError, match="no module f"):
        initramfs.module_files(kernel, ["f"])


# ---- KVM or emulation ----


def emulator(directory: Path, script: str) -> str:
    """Write a script to be run instead of QEMU; return its path."""
    path = directory / "qemu"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_kvm_is_used_if_a_guest_ran(tmp_path: Path) -> None:
    works = emulator(tmp_path, f"echo Linux; echo {accel.HELLO}")
    assert accel.why_not_kvm("k", "i", "/dev/null", works) is None


def test_kvm_is_not_used_if_it_hangs_fails_or_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accel, "TIMEOUT_S", 0.2)
    hangs = emulator(tmp_path, "exec sleep 600")
    assert "hung" in (accel.why_not_kvm("k", "i", "/dev/null", hangs) or "")
    monkeypatch.setattr(accel, "TIMEOUT_S", 30.0)
    fails = emulator(tmp_path, f"echo {accel.HELLO}; echo no such thing >&2; exit 1")
    assert "no such thing" in (accel.why_not_kvm("k", "i", "/dev/null", fails) or "")
    silent = emulator(tmp_path, "echo Linux")
    assert "did not come up: Linux" in (accel.why_not_kvm("k", "i", "/dev/null", silent) or "")
    assert accel.why_not_kvm("k", "i", str(tmp_path / "kvm")) == f"no {tmp_path}/kvm"
    missing = str(tmp_path / "none")
    assert accel.why_not_kvm("k", "i", "/dev/null", missing) == f"no {missing}"


def test_the_driver_is_determined_once_per_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def check(vmlinuz: str, initrd: str) -> str | None:
        calls.append((vmlinuz, initrd))
        return None if len(calls) == 1 else "it hung"

    monkeypatch.delenv(accel.VARIABLE, raising=False)
    monkeypatch.setattr(accel, "why_not_kvm", check)
    cache = tmp_path / "a/driver.json"
    first = accel.driver("k", "i", cache)
    assert first[0] == "kvm"
    assert accel.driver("k", "i", cache) == first
    assert calls == [("k", "i")]
    cache.write_text(cache.read_text().replace('"boot": "', '"boot": "another'))
    assert accel.driver("k", "i", cache) == ("qemu", "it hung")
    cache.write_text("no JSON")
    assert accel.driver("k", "i", cache)[0] == "qemu"


def test_the_driver_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(accel.VARIABLE, "qemu")
    assert accel.driver("k", "i", tmp_path / "none")[0] == "qemu"
    assert not (tmp_path / "none").exists()
    monkeypatch.setenv(accel.VARIABLE, "xen")
    assert accel.main(["k", "i"]) == 1


# ---- steps ----


def test_a_failed_step_is_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    steps = Steps()
    with steps("one"):
        pass
    with pytest.raises(StepError, match="exit code 3"), steps("two"):
        run(["sh", "-c", "echo output; exit 3"])
    assert [(name, ok) for name, _, ok in steps.taken] == [("one", True), ("two", False)]
    assert re.search(r"s  two  FAILED$", steps.table(), re.MULTILINE)
    assert "two: FAILED after" in capsys.readouterr().out


def test_progress_bars_are_not_shown() -> None:
    assert (
        last_written("\r\x1b[KProgress: 1%\r\x1b[KProgress: 2%\r\x1b[K==> done\r\n") == "==> done"
    )
    assert last_written("  plain\n") == "  plain"


def test_an_unknown_kernel_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        box_check.main(["2.6"])
    assert "no kernel 2.6 in vagrant/kernels.toml" in capsys.readouterr().err


@pytest.mark.parametrize("broken", ["up", "provision", "pytest", "destroy", None])
def test_a_machine_that_fails_is_reported_and_destroyed(
    broken: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    def show(argv: list[str], env: dict[str, str]) -> None:
        called.append(argv[1])
        assert env["REDIRTY_VM_NETWORK"] == "isolated"
        if broken is not None and any(broken in word for word in argv):
            raise StepError(f"{argv[1]}: exit code 1")

    monkeypatch.setattr(box_check, "show", show)
    steps = Steps()
    info = {"kernels": {"6.12": {"release": "6.12.1-amd64", "console": "/none"}}}
    if broken is None:
        box_check.machine("6.12", info, steps, keep=False)
    else:
        with pytest.raises(StepError):
            box_check.machine("6.12", info, steps, keep=False)
    assert called[0] == "up"
    assert called[-1] == "destroy"
    assert ("ssh" in called) == (broken not in ("up", "provision"))
    assert all(ok for _, _, ok in steps.taken) == (broken is None)
