"""Debian kernels to test with: which there are, and how to get one without installing it.

A kernel is downloaded by apt into a private apt root, so neither the machine's package lists nor its
installed packages change. It is unpacked, never installed, below ``$REDIRTY_CACHE/kernels`` (default
``~/.cache/redirty/kernels``). An unpacked one is used again without a network; delete the kernel's directory
to get a newer one.

The flavour is Debian's plain ``amd64``. The smaller ``cloud-amd64`` lacks 9p, through which the guest reaches the
machine's files.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

TABLE = Path(__file__).resolve().parents[2] / "vagrant/kernels.toml"
# Kernel series -> the Debian suite that has it.
KERNELS: dict[str, str] = {
    name: row["suite"] for name, row in tomllib.loads(TABLE.read_text(encoding="utf-8")).items()
}
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DOWNLOAD_TIMEOUT_S = 900


class KernelError(RuntimeError):
    """A kernel is unknown, or cannot be downloaded or unpacked; the message says what to do."""


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel. `release` is the output of ``uname -r`` in a machine that runs it."""

    name: str
    release: str
    directory: Path

    @property
    def image(self) -> Path:
        """The compressed kernel, for a boot loader."""
        return self.directory / "boot" / f"vmlinuz-{self.release}"

    @property
    def config(self) -> Path:
        """The build configuration (``CONFIG_...`` lines)."""
        return self.directory / "boot" / f"config-{self.release}"

    @property
    def modules(self) -> Path:
        """The module tree, with depmod's tables."""
        return self.directory / "lib" / "modules" / self.release

    @property
    def debian_version(self) -> str:
        """The version of the Debian package, from the banner in the image's header.

        The header's fields: Documentation/arch/x86/boot.rst.
        """
        header = self.image.read_bytes()[: 64 << 10]
        start = int.from_bytes(header[0x20E:0x210], "little") + 0x200
        banner = header[start : header.index(b"\0", start)].decode()
        found = re.search(r" Debian (\S+)", banner)
        if found is None:
            raise KernelError(f"{self.image} is not a kernel of Debian: {banner}")
        return found[1]


def cache_root() -> Path:
    """Return the directory for everything that can be downloaded again."""
    return Path(os.environ.get("REDIRTY_CACHE") or Path.home() / ".cache" / "redirty").absolute()


def fetch(name: str) -> Kernel:
    """Return kernel `name` (a key of KERNELS), downloading it when the cache does not have it.

    Processes that ask at the same time wait for one download.

    Raises: KernelError.
    """
    if name not in KERNELS:
        raise KernelError(f"no kernel {name!r} in the table; there are: {', '.join(KERNELS)}")
    store = cache_root() / "kernels"
    store.mkdir(parents=True, exist_ok=True)
    directory = store / name
    with _lock(store / f".{name}.lock"):
        if not directory.is_dir():
            with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=store) as scratch:
                tree = _download(name, Path(scratch))
                # The rename is what makes a download complete: a half-unpacked
                # kernel never has the final name.
                tree.rename(directory)
    return _open(name, directory)


def _open(name: str, directory: Path) -> Kernel:
    releases = [path.name for path in (directory / "lib" / "modules").glob("*")]
    if len(releases) != 1:
        raise KernelError(f"{directory} is not one unpacked kernel; delete it and try again")
    return Kernel(name, releases[0], directory)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(name: str, scratch: Path) -> Path:
    """Download and unpack the newest kernel of series `name`; return the unpacked tree."""
    options = _private_apt(scratch, KERNELS[name])
    run(["apt-get", *options, "-q", "update"])
    listed = run(["apt-cache", *options, "pkgnames", f"linux-image-{name}."])
    # 5.10.0-32, 6.12.107+deb13, 6.1.0-0.deb11.5: no flavour (-cloud, -rt), no -dbg, no -unsigned.
    shape = re.compile(rf"linux-image-{re.escape(name)}\.\d+(-\d[\w.]*|\+[\w.]+)*-amd64")
    images = [package for package in listed.split() if shape.fullmatch(package)]
    if not images:
        raise KernelError(f"Debian's {KERNELS[name]} has no kernel {name} any more")
    image = max(images, key=lambda package: [int(n) for n in re.findall(r"\d+", package)])
    debs = scratch / "debs"
    debs.mkdir()
    run(["apt-get", *options, "-q", "download", *_parts(image, options)], cwd=debs)

    tree = scratch / "tree"
    for deb in sorted(debs.glob("*.deb")):
        run(["dpkg-deb", "-x", str(deb), str(tree)])
    if not (tree / "lib").exists():
        # Since trixie the package has /usr/lib/modules, and relies on the /lib link.
        (tree / "usr" / "lib").rename(tree / "lib")
    shutil.rmtree(tree / "usr", ignore_errors=True)
    kernel = _open(name, tree)
    (tree / "boot").mkdir(exist_ok=True)
    for part in ("vmlinuz", "config"):
        # Where newer packages have what used to be in /boot.
        if (kernel.modules / part).is_file():
            (kernel.modules / part).rename(tree / "boot" / f"{part}-{kernel.release}")
    if not kernel.image.is_file():
        raise KernelError(f"{image} came without {kernel.image.name}")
    run(["depmod", "-b", str(tree), kernel.release])
    return tree


def _parts(image: str, options: Sequence[str]) -> list[str]:
    """Return the packages that hold a kernel. In newer Debians the image package itself is empty."""
    release = image.removeprefix("linux-image-")
    listed = run(["apt-cache", *options, "depends", image])
    parts = (f"linux-{part}-{release}" for part in ("base", "binary", "modules"))
    return [image, *(part for part in parts if f"Depends: {part}\n" in listed)]


def _private_apt(scratch: Path, suite: str) -> list[str]:
    """Return options that make apt use `suite` of this machine's mirror, and only files in `scratch`."""
    for directory in ("state/lists/partial", "cache/archives/partial"):
        (scratch / directory).mkdir(parents=True)
    (scratch / "state" / "status").touch()
    signed_by = f"[signed-by={KEYRING}] " if KEYRING.is_file() else ""
    (scratch / "sources.list").write_text(f"deb {signed_by}{mirror()} {suite} main\n")
    # Hooks of the machine's own apt would run as if its own lists had changed.
    (scratch / "apt.conf").write_text(
        "#clear APT::Update::Post-Invoke;\n"
        "#clear APT::Update::Post-Invoke-Success;\n"
        f'Dir::State "{scratch}/state";\n'
        f'Dir::State::status "{scratch}/state/status";\n'
        f'Dir::Cache "{scratch}/cache";\n'
        f'Dir::Etc::sourcelist "{scratch}/sources.list";\n'
        'Dir::Etc::sourceparts "-";\n'
        'APT::Architecture "amd64";\n'
        # The cache is in a home directory, which apt's own user may not enter.
        'APT::Sandbox::User "root";\n'
    )
    return ["-c", str(scratch / "apt.conf")]


def mirror() -> str:
    """Return the mirror from which this machine gets Debian. $REDIRTY_DEBIAN_MIRROR takes precedence."""
    if mirror := os.environ.get("REDIRTY_DEBIAN_MIRROR"):
        return mirror
    form = "$(REPO_URI) $(LABEL)"
    listed = run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"])
    for line in listed.splitlines():
        uri, _, label = line.partition(" ")
        # The security archive's label is Debian-Security, and it has no other suites. Without
        # downloaded lists there is no label.
        if label == "Debian" or urlsplit(uri).path.strip("/") == "debian":
            return uri
    raise KernelError(
        "apt knows no Debian mirror here; set REDIRTY_DEBIAN_MIRROR to the address of one"
    )


def run(argv: Sequence[str], cwd: Path | None = None) -> str:
    """Run a command and return its output.

    Raises: KernelError with the end of its messages.
    """
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            env=os.environ | {"LC_ALL": "C", "PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=DOWNLOAD_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise KernelError(f"{argv[0]} is not installed (packages apt, dpkg, kmod)") from error
    except subprocess.TimeoutExpired as error:
        raise KernelError(f"{argv[0]} took more than {DOWNLOAD_TIMEOUT_S} s") from error
    if done.returncode != 0:
        raise KernelError(f"{' '.join(argv)} failed:\n" + "\n".join(done.stderr.splitlines()[-8:]))
    return done.stdout
