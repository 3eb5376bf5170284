"""Devices behind the system's OpenSSH: its configuration, agents, keys and jump hosts; host keys checked strictly."""

from __future__ import annotations

import shlex

from deploycompress.config.devices import SshConfig
from deploycompress.devices import pipes
from deploycompress.devices.link import Done, LinkLost
from deploycompress.devices.remote import RemoteDevice
from deploycompress.errors import EnvironmentMissing

FOLDER = "~/.cache/deploycompress"
CONNECT_S = 10  # to a connection, with the exchange of keys
ALIVE_S, SILENT = 5, 3  # a link that is silent for three questions of five seconds is lost
OWN_FAILURE = 255  # the code of ssh itself, and not of the command
# What ssh says -> what it means and what to do; these do not pass by waiting.
LASTING = {
    "REMOTE HOST IDENTIFICATION HAS CHANGED": (
        "the host key of {host} is not the one in known_hosts, so this may be another machine; if the device was set up "
        "anew, remove the old key with ssh-keygen -R and connect once by hand"
    ),
    "Host key verification failed": (
        "{host} is not in known_hosts; connect once by hand with ssh, and compare its fingerprint with the device's"
    ),
    "Permission denied": (
        "{host} refuses our keys; add a public key to its authorized_keys, or name another one by `identity:`"
    ),
    "Could not resolve hostname": (
        "{host} has no address; look at `ssh:` in devices.yaml, or at the network"
    ),
    "Bad configuration option": "ssh refuses its own configuration; look at ~/.ssh/config",
    "Bad owner or permissions": "ssh refuses its own configuration; look at the permissions of ~/.ssh",
}


class Ssh(RemoteDevice):
    """``ssh: user@host`` in devices.yaml."""

    def __init__(self, name: str, config: SshConfig, controller: str = "") -> None:
        super().__init__(name, config, OpenSsh(name, config), FOLDER, controller)


class OpenSsh:
    """A transport: one ``ssh`` a command, without a terminal and without a question to anyone."""

    def __init__(self, name: str, config: SshConfig) -> None:
        self._name, self._config = name, config

    def run(self, command: str, data: bytes, timeout_s: float, most: int) -> Done:
        arguments = ["ssh", "-T", *self.options(), *self._way(), "--", self._config.ssh, command]
        try:
            code, out, error = pipes.run(arguments, data, timeout_s, most)
        except FileNotFoundError as missing:
            raise EnvironmentMissing(
                f"device {self._name}: there is no ssh on this machine; install OpenSSH's client"
            ) from missing
        return Done(code, out, error.decode(errors="replace"))

    def explain(self, done: Done) -> None:
        if done.code not in (OWN_FAILURE, None):
            return
        host = " or ".join(filter(None, (self._config.ssh, self._config.jump)))
        for said, meaning in LASTING.items():
            if said in done.error:
                raise EnvironmentMissing(
                    f"device {self._name}: {meaning.format(host=host)} (ssh says: {_last(done.error)})"
                )
        if done.code == OWN_FAILURE:
            raise LinkLost(f"there is no connection to {self._config.ssh} (ssh says: {_last(done.error)})")

    def options(self) -> list[str]:
        """What holds for the device and for the host in between."""
        fixed = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "UpdateHostKeys": "no",
            "ConnectTimeout": str(CONNECT_S),
            "ServerAliveInterval": str(ALIVE_S),
            "ServerAliveCountMax": str(SILENT),
            "ControlMaster": "no",  # a connection in the background would keep our pipes open
            "ForwardAgent": "no",
            "ClearAllForwardings": "yes",
            "PermitLocalCommand": "no",
            "LogLevel": "INFO",  # so that it says why a link is lost
        }
        if self._config.known_hosts is not None:
            name = str(self._config.known_hosts).replace("\\", r"\\").replace('"', r"\"")
            fixed["UserKnownHostsFile"] = f'"{name}"'  # else a space would end it
            fixed["GlobalKnownHostsFile"] = "none"
        options = [part for key, value in fixed.items() for part in ("-o", f"{key}={value}")]
        if self._config.identity is not None:
            options += ["-i", str(self._config.identity), "-o", "IdentitiesOnly=yes"]
        return options

    def _way(self) -> list[str]:
        """Of the device alone: its port, and the host in between, whose key is checked as strictly."""
        way = ["-o", "RemoteCommand=none"]
        if self._config.port is not None:
            way += ["-p", str(self._config.port)]
        if self._config.jump is not None:
            host, _, port = self._config.jump.partition(":")
            to = ["-p", port] if port else []
            line = shlex.join(["ssh", "-T", *self.options(), *to, "-W", "[%h]:%p", "--", host])
            way += ["-o", f"ProxyCommand={line}"]
        return way


def _last(said: str) -> str:
    lines = said.strip().splitlines()
    return lines[-1].strip()[:300] if lines else "nothing about why"
