"""The box's file system: Debian by debootstrap, with the packages that redirty and its tests take.

It has the modules of every kernel of the table, as far as a virtual machine has use for them, and
no kernel: libvirt gives it one to boot.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.vm import kernels
from vagrant.commands import HERE, PROJECT, StepError, run

SUITE = "bookworm"  # its Python is that of wheels.PYTHON
SYSTEM = (
    *("systemd-sysv", "systemd-resolved", "udev", "dbus", "kmod", "iproute2", "ca-certificates"),
    *("openssh-server", "sudo", "rsync", "less"),
)
# Directories of kernel/ and kernel/drivers/ that a virtual machine may load modules from.
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
# Services that the packages bring along and no test wants to find running.
UNWANTED = (
    *("postgresql.service", "redis-server.service"),
    *("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "e2scrub_reap.service"),
    *("dpkg-db-backup.timer", "fstrim.timer", "systemd-networkd-wait-online.service"),
)
DPKG = """\
force-unsafe-io
path-exclude /usr/share/doc/*
path-exclude /usr/share/locale/*
"""


def packages() -> list[str]:
    """What the README's commands would install, so that they find it there."""
    listed = subprocess.run(
        [PROJECT / ".ci/setup", "list"], capture_output=True, text=True, check=True
    )
    return listed.stdout.split()


def build(tree: Path, found: Iterable[kernels.Kernel]) -> None:
    """Makes the file system in the directory `tree`, which must not exist yet.

    Raises StepError, KernelError.
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
    """The packages, by the box's own apt, which goes where this machine's goes."""
    (tree / "etc/dpkg/dpkg.cfg.d/redirty").write_text(DPKG)
    policy = tree / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")  # nothing is started in here
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
    """Runs a command in the tree. What it takes to be mounted goes away with it."""
    script = 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"'
    environment = {"DEBIAN_FRONTEND": "noninteractive", "HOME": "/root"}
    run(["unshare", "--mount", "sh", "-c", script, tree, *argv], env=environment)


def _configure(tree: Path) -> None:
    """What Vagrant asks of a box: its user with its key, sudo, ssh, an address by DHCP."""
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
    # debootstrap copied this machine's; the box asks where its DHCP server tells it to.
    (tree / "etc/resolv.conf").unlink(missing_ok=True)
    (tree / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    (tree / "etc/machine-id").write_text("")  # each machine makes one of its own


def public_key() -> Path:
    """The key that `vagrant up` knocks with at first, and then replaces by one of its own."""
    for root in ("/usr/share", "/opt/vagrant"):
        for path in Path(root).glob("**/gems/vagrant-*/keys/vagrant.pub"):
            return path
    raise StepError("vagrant is not installed: run sudo .ci/setup vagrant")


def copy_modules(kernel: kernels.Kernel, tree: Path) -> None:
    """The kernel's modules, without those for devices that only a real machine has."""
    target = tree / "usr/lib/modules" / kernel.release
    shutil.copytree(kernel.modules, target, symlinks=True, ignore=not_for_machines(kernel.modules))
    run(["depmod", "-b", tree, kernel.release])


def not_for_machines(modules: Path) -> Callable[[str, list[str]], set[str]]:
    """What shutil.copytree is to leave out."""

    def ignored(directory: str, names: list[str]) -> set[str]:
        parts = Path(directory).relative_to(modules).parts
        kept = {(): ("kernel",), ("kernel",): (*MODULES, "drivers"), ("kernel", "drivers"): DRIVERS}
        if parts == ("kernel", "drivers", "net"):  # network cards are in directories below it
            return {name for name in names if (Path(directory) / name).is_dir()}
        if parts not in kept:
            return set()
        return {n for n in names if (Path(directory) / n).is_dir() and n not in kept[parts]}

    return ignored
