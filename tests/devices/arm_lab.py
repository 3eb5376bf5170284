"""A 64-bit ARM device on loopback: a Debian in a folder, run by qemu's user mode, with an sshd of its own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from device_lab import wait_until

from deploycompress.config.devices import SshConfig

ONNXRUNTIME = "1.24.4"  # 1.31.1 crashes on import under qemu 7.2
PROGRAMS = ("debootstrap", "qemu-aarch64-static", "ssh")
PLATFORMS = (
    "manylinux_2_28_aarch64",
    "manylinux_2_27_aarch64",
    "manylinux_2_17_aarch64",
    "manylinux2014_aarch64",
)
SOURCES = ("/etc/apt/sources.list", "/etc/apt/sources.list.d")


def missing() -> str | None:
    """Why there can be no such device here."""
    if "DEPLOYCOMPRESS_ARM_DEVICE" not in os.environ:
        return "DEPLOYCOMPRESS_ARM_DEVICE names no folder to build an emulated ARM device in (once, four minutes)"
    if os.getuid() != 0:
        return "an emulated ARM device needs root, for chroot and mount"
    if _release() is None or _mirror() is None:
        return "an emulated ARM device is a Debian like the one around it, and this is none, or has no mirror of one"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return (
        f"not installed: {', '.join(absent)} (apt-get install debootstrap qemu-user-static)"
        if absent
        else None
    )


def build(folder: Path) -> None:
    """The file system in ``folder/root``, with Python, numpy and ONNX Runtime; once."""
    if (folder / "built").exists():
        return
    root, log = folder / "root", folder / "build.log"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(root, ignore_errors=True)
    release, mirror = _release(), _mirror()
    assert release and mirror, missing()
    first = [
        "debootstrap",
        "--arch=arm64",
        "--foreign",
        "--variant=minbase",
        "--include=python3,openssh-server",
    ]
    with log.open("wb") as stream:
        for command in (
            [*first, release, str(root), mirror],
            ["chroot", str(root), "/debootstrap/debootstrap", "--second-stage"],
        ):
            subprocess.run(command, check=True, stdout=stream, stderr=subprocess.STDOUT)
    version = next((root / "usr" / "lib").glob("python3.*")).name.removeprefix("python")
    packages = root / "usr" / "local" / "lib" / f"python{version}" / "dist-packages"
    wheels = folder / "wheels"
    platforms = [part for name in PLATFORMS for part in ("--platform", name)]
    fetch = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--only-binary=:all:",
        "--python-version",
        version,
    ]
    wanted = ["-d", str(wheels), "numpy", f"onnxruntime=={ONNXRUNTIME}"]
    subprocess.run([*fetch, "--implementation", "cp", *platforms, *wanted], check=True)
    for wheel in wheels.glob("*.whl"):
        shutil.unpack_archive(wheel, packages, "zip")
    (folder / "built").touch()


def _release() -> str | None:
    """Of the Debian that this machine runs."""
    place = Path("/etc/os-release")
    text = place.read_text() if place.exists() else ""
    found = re.search(r"^VERSION_CODENAME=(\w+)", text, re.MULTILINE)
    return found[1] if found and re.search(r"^ID=debian$", text, re.MULTILINE) else None


def _mirror() -> str | None:
    """Where this machine has its own packages from."""
    files = [
        path for name in SOURCES for path in (Path(name), *sorted(Path(name).glob("*"))) if path.is_file()
    ]
    text = "\n".join(
        line for file in files for line in file.read_text().splitlines() if not line.startswith("#")
    )
    found = re.search(r"https?://\S+/debian/?", text)
    return found[0] if found else None


@contextlib.contextmanager
def arm_device(folder: Path, keys: Path) -> Iterator[SshConfig]:
    """Starts it; gives what devices.yaml would say."""
    root = folder / "root"
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / "key")], check=True)
    host_key = root / "etc" / "ssh" / "lab_host_key"
    for path in (host_key, host_key.with_suffix(".pub")):
        path.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(host_key)], check=True)
    shutil.copyfile(keys / "key.pub", root / "etc" / "ssh" / "lab_keys")
    (keys / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key.with_suffix('.pub').read_text()}")
    (root / "run" / "sshd").mkdir(parents=True, exist_ok=True)
    options = {
        "ListenAddress": f"127.0.0.1:{port}",
        "HostKey": "/etc/ssh/lab_host_key",
        "AuthorizedKeysFile": "/etc/ssh/lab_keys",
        "UsePAM": "no",
        "StrictModes": "no",
        "PidFile": "none",
    }
    settings = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
    mounted = [root / name for name in ("proc", "sys", "dev")]
    for place in mounted:
        subprocess.run(["mount", "--rbind", f"/{place.name}", str(place)], check=True)
    log = keys / "sshd.log"
    try:
        with log.open("wb") as stream:
            server = subprocess.Popen(
                ["chroot", str(root), "/usr/sbin/sshd", "-D", "-e", *settings], stderr=stream
            )
        wait_until(lambda: b"Server listening" in log.read_bytes(), 60)
        yield SshConfig(
            ssh="root@127.0.0.1", port=port, identity=keys / "key", known_hosts=keys / "known_hosts"
        )
        server.terminate()
        server.wait()
    finally:
        for place in reversed(mounted):
            subprocess.run(["umount", "-R", "-l", str(place)], check=True)
