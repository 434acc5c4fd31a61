"""Builds the box's file system: Debian by debootstrap, with the packages that redirty and its tests need.

It has the modules of every kernel in the table that a virtual machine can use, but no kernel: libvirt
provides the one to boot.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.vm import kernels
from vagrant.commands import HERE, PROJECT, StepError, run

SUITE = "bookworm"  # its Python version is wheels.PYTHON
SYSTEM = (
    "systemd-sysv", "systemd-resolved", "udev", "dbus", "kmod", "iproute2", "ca-certificates",
    "openssh-server", "sudo", "rsync", "less",
)  # fmt: skip
# Directories of kernel/ and kernel/drivers/ with modules that a virtual machine may load.
MODULES = ("arch", "block", "crypto", "fs", "lib", "mm", "net", "security", "virt")
DRIVERS = (
    "acpi",
    "block",
    "char",
    "crypto",
    "dax",
    "md",
    "net",
    "nvdimm",
    "vhost",
    "virt",
    "virtio",
)
# Services of the packages that would disturb the tests.
UNWANTED = (
    "postgresql.service", "redis-server.service",
    "apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "e2scrub_reap.service",
    "dpkg-db-backup.timer", "fstrim.timer", "systemd-networkd-wait-online.service",
)  # fmt: skip
DPKG = """\
force-unsafe-io
path-exclude /usr/share/doc/*
path-exclude /usr/share/locale/*
"""


def packages() -> list[str]:
    """Return the packages that the README's commands would install, so that they need not."""
    listed = subprocess.run(
        [PROJECT / ".ci/setup", "list"], capture_output=True, text=True, check=True
    )
    return listed.stdout.split()


def build(tree: Path, found: Iterable[kernels.Kernel]) -> None:
    """Build the file system in the directory `tree`, which must not exist yet.

    Raises:
        StepError: a command failed.
        KernelError: the Debian mirror is unknown.
    """
    mirror = kernels.mirror()
    keyring = ["--keyring", str(kernels.KEYRING)] if kernels.KEYRING.is_file() else []
    run(["debootstrap", "--variant=minbase", *keyring, SUITE, tree, mirror])
    (tree / "etc/apt/sources.list").write_text(f"deb {mirror} {SUITE} main\n")
    _install(tree)
    _configure(tree)
    for kernel in found:
        copy_modules(kernel, tree)


def _install(tree: Path) -> None:
    """Install the packages with the box's own apt, through the proxies of this machine's apt."""
    (tree / "etc/dpkg/dpkg.cfg.d/redirty").write_text(DPKG)
    policy = tree / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")  # no service may be started in the chroot
    policy.chmod(0o755)
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True)
    proxies = [line for line in dump.stdout.splitlines() if "::Proxy" in line]
    borrowed = tree / "etc/apt/apt.conf.d/99-build"
    borrowed.write_text("\n".join(proxies) + "\n")
    inside(tree, "apt-get", "-q", "update")
    wanted = [*SYSTEM, *packages()]
    inside(tree, "apt-get", "-q", "-y", "install", "--no-install-recommends", *wanted)
    inside(tree, "apt-get", "clean")
    policy.unlink()
    borrowed.unlink()
    for path in (tree / "var/lib/apt/lists").glob("*_*"):
        path.unlink()


def inside(tree: Path, *argv: str) -> None:
    """Run a command in the tree, in a mount namespace that ends with it.

    Raises:
        StepError: the command failed.
    """
    script = 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"'
    environment = {"DEBIAN_FRONTEND": "noninteractive", "HOME": "/root"}
    run(["unshare", "--mount", "sh", "-c", script, tree, *argv], env=environment)


def _configure(tree: Path) -> None:
    """Set up what Vagrant requires of a box: user, key, sudo, ssh, DHCP."""
    for path in (HERE / "files").rglob("*"):
        if path.is_file():
            target = tree / path.relative_to(HERE / "files")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    (tree / "etc/sudoers.d/vagrant").chmod(0o440)
    (tree / "etc/hostname").write_text("redirty\n")
    (tree / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 redirty\n")
    (tree / "etc/fstab").write_text("/dev/vda / ext4 defaults 0 0\n")
    inside(tree, "useradd", "--create-home", "--shell", "/bin/bash", "vagrant")
    keys = tree / "home/vagrant/.ssh"
    keys.mkdir()
    shutil.copyfile(public_key(), keys / "authorized_keys")
    keys.chmod(0o700)
    inside(tree, "chown", "-R", "vagrant:vagrant", "/home/vagrant")
    inside(tree, "systemctl", "enable", "systemd-networkd", "systemd-resolved", "ssh")
    inside(tree, "systemctl", "mask", *UNWANTED)
    # debootstrap copied this machine's; the box uses the name server that DHCP announces.
    (tree / "etc/resolv.conf").unlink(missing_ok=True)
    (tree / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    (tree / "etc/machine-id").write_text("")  # each machine generates its own


def public_key() -> Path:
    """Return the key that the first `vagrant up` logs in with, before it is replaced by a new one.

    Raises:
        StepError: vagrant is not installed.
    """
    for root in ("/usr/share", "/opt/vagrant"):
        for path in Path(root).glob("**/gems/vagrant-*/keys/vagrant.pub"):
            return path
    raise StepError("vagrant is not installed: run sudo .ci/setup vagrant")


def copy_modules(kernel: kernels.Kernel, tree: Path) -> None:
    """Copy the kernel's modules, without those for devices that only a physical machine has."""
    target = tree / "usr/lib/modules" / kernel.release
    shutil.copytree(
        kernel.modules, target, symlinks=True, ignore=without_physical_devices(kernel.modules)
    )
    run(["depmod", "-b", tree, kernel.release])


def without_physical_devices(modules: Path) -> Callable[[str, list[str]], set[str]]:
    """Return an `ignore` function for shutil.copytree that leaves out drivers of physical devices."""

    def ignored(directory: str, names: list[str]) -> set[str]:
        parts = Path(directory).relative_to(modules).parts
        kept = {(): ("kernel",), ("kernel",): (*MODULES, "drivers"), ("kernel", "drivers"): DRIVERS}
        if parts == (
            "kernel",
            "drivers",
            "net",
        ):  # drivers of physical network cards are in its subdirectories
            return {name for name in names if (Path(directory) / name).is_dir()}
        if parts not in kept:
            return set()
        return {n for n in names if (Path(directory) / n).is_dir() and n not in kept[parts]}

    return ignored
