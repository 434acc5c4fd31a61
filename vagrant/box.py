"""Builds the Vagrant box:  sudo make vagrant-box

One box serves all kernels: its disk is an ext4 file system without partition table or boot loader,
and libvirt boots a kernel of the table with a small initramfs. It makes:

    vagrant/build/redirty.box       metadata.json and the disk (qcow2), in the format of vagrant-libvirt
    vagrant/build/catalog.json      tells Vagrant the location and the version of the box
    vagrant/build/box.json          read by the Vagrantfile
    /var/lib/libvirt/redirty/ID/    kernels and initramfs images, readable by libvirt's QEMU

A second run builds nothing unless the inputs of the box have changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.vm import initramfs, kernels
from vagrant import rootfs
from vagrant.commands import BUILD, HERE, PROJECT, StepError, Steps, run

NAME = "redirty/guest"
BOX, CATALOG, INFO = (BUILD / name for name in ("redirty.box", "catalog.json", "box.json"))
DISK_GIB = 8
# Modules for the root disk. Newer kernels have crc32c built in, and no such module.
BOOT_MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
BOOT_OPTIONAL = "crc32c_generic"
CHECKOUT = hashlib.sha256(str(PROJECT).encode()).hexdigest()[:8]
LIBVIRT = Path("/var/lib/libvirt/redirty") / CHECKOUT


def build(steps: Steps) -> dict[str, Any]:
    """Build what is missing; return the contents of box.json.

    Raises:
        StepError: a command failed.
        KernelError: a kernel cannot be fetched.
        InitramfsError: an initramfs cannot be built.
    """
    if os.geteuid() != 0:
        raise StepError("building the box needs root: run sudo make vagrant-box")
    BUILD.mkdir(exist_ok=True)
    with steps("kernels"):
        found = [kernels.fetch(name) for name in kernels.KERNELS]
        for kernel in found:
            print(f"  {kernel.name}: Debian's {kernel.debian_version}, {kernel.release}")
    inputs = fingerprint(found)
    if (info := present(inputs)) is not None:
        print(f"redirty: the box is up to date, version {info['version']}")
        return info
    INFO.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as name:
        scratch = Path(name)
        with steps("box: debootstrap, packages, modules"):
            rootfs.build(scratch / "tree", found)
        with steps("box: disk image"):
            version = pack(image(scratch / "tree", scratch))
            kernel_files = {kernel.name: publish(kernel) for kernel in found}
    info = {
        "name": NAME,
        "version": version,
        "inputs": inputs,
        "prefix": f"redirty-{CHECKOUT}-",
        "kernels": kernel_files,
    }
    INFO.write_text(json.dumps(info, indent=1) + "\n")
    return info


def fingerprint(found: list[kernels.Kernel]) -> str:
    """Hash all inputs of the box, except the contents of Debian's packages."""
    digest = hashlib.sha256()
    sources = [HERE / "box.py", HERE / "rootfs.py", HERE / "init.sh", Path(initramfs.__file__)]
    sources += [path for path in (HERE / "files").rglob("*") if path.is_file()]
    for path in sorted(sources):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    versions = [f"{k.name}={k.debian_version}" for k in found]
    for word in [*rootfs.packages(), *versions]:
        digest.update(word.encode() + b"\0")
    return digest.hexdigest()


def present(inputs: str) -> dict[str, Any] | None:
    """Return box.json if all files it names exist and were made from the same inputs; else None."""
    if not (INFO.is_file() and CATALOG.is_file() and BOX.is_file()):
        return None
    info: dict[str, Any] = json.loads(INFO.read_text())
    files = [Path(row[key]) for row in info["kernels"].values() for key in ("vmlinuz", "initrd")]
    if info["inputs"] != inputs or not all(path.is_file() for path in files):
        return None
    return info


def image(tree: Path, scratch: Path) -> Path:
    """Convert the tree to an ext4 file system in a qcow2 image; return its path."""
    raw, disk = scratch / "raw", scratch / "box.img"
    run(["mke2fs", "-q", "-t", "ext4", "-L", "redirty", "-d", tree, raw, f"{DISK_GIB}G"])
    shutil.rmtree(tree)
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, disk])
    raw.unlink()
    return disk


def pack(disk: Path) -> str:
    """Write the box and its catalog; return the version, which is unique to this build."""
    now = time.gmtime()
    seconds = now.tm_hour * 3600 + now.tm_min * 60 + now.tm_sec
    version = f"{time.strftime('%Y%m%d', now)}.{seconds}"
    metadata = disk.with_name("metadata.json")
    about = {"provider": "libvirt", "format": "qcow2", "virtual_size": DISK_GIB}
    metadata.write_text(json.dumps(about) + "\n")
    with tarfile.open(BOX, "w") as box:
        for path in (metadata, disk):
            box.add(path, path.name)
    provider = {"name": "libvirt", "url": BOX.as_uri()}
    versions = [{"version": version, "providers": [provider]}]
    CATALOG.write_text(json.dumps({"name": NAME, "versions": versions}, indent=1) + "\n")
    return version


def publish(kernel: kernels.Kernel) -> dict[str, str]:
    """Copy a kernel and its initramfs to where libvirt's QEMU may read them."""
    directory = LIBVIRT / kernel.name
    directory.mkdir(parents=True, exist_ok=True)
    vmlinuz, initrd, console = (directory / name for name in ("vmlinuz", "initrd", "console"))
    # New files: those of a running machine must not change.
    vmlinuz.unlink(missing_ok=True)
    initrd.unlink(missing_ok=True)
    shutil.copyfile(kernel.image, vmlinuz)
    initrd.write_bytes(make_initramfs(kernel))
    return {
        "release": kernel.release,
        "debian_version": kernel.debian_version,
        "vmlinuz": str(vmlinuz),
        "initrd": str(initrd),
        "console": str(console),
    }


def make_initramfs(kernel: kernels.Kernel) -> bytes:
    """Return an initramfs with init.sh and the modules for the root disk."""
    known = {
        path.name.split(".ko")[0].replace("-", "_")
        for path in (kernel.modules / "kernel").rglob("*.ko*")
    }
    modules = [name for name in BOOT_MODULES if name != BOOT_OPTIONAL or name in known]
    return initramfs.build(kernel, "", modules=modules, init=HERE / "init.sh")


def main() -> int:
    """Build the box; return the exit code."""
    steps = Steps()
    try:
        info = build(steps)
    except (StepError, kernels.KernelError, initramfs.InitramfsError, OSError) as error:
        print(f"redirty: {error}", file=sys.stderr)
        return 1
    print(steps.table())
    print(f"box {info['name']} {info['version']}: cd vagrant && vagrant up")
    return 0


if __name__ == "__main__":
    sys.exit(main())
