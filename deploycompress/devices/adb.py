"""Android devices behind the system's ``adb``; Python is where the configuration says, in Termux for example."""

from __future__ import annotations

from deploycompress.config.devices import AdbConfig
from deploycompress.devices import pipes
from deploycompress.devices.link import Done, LinkLost
from deploycompress.devices.remote import RemoteDevice
from deploycompress.errors import EnvironmentMissing

FOLDER = "/data/local/tmp/deploycompress"
# What adb says -> what it means and what to do; these do not pass by waiting.
LASTING = {
    "unauthorized": "it has not allowed this computer; unlock it and confirm the question about USB debugging",
    "no permissions": "this user may not use its USB port; look at the udev rules of adb",
    "more than one device": "several devices have this serial; look at `adb devices`",
}
PASSING = ("offline", "not found", "no devices", "closed", "protocol fault", "failed to connect", "reset")


class Adb(RemoteDevice):
    """``adb: SERIAL`` in devices.yaml."""

    def __init__(self, name: str, config: AdbConfig, controller: str = "") -> None:
        super().__init__(name, config, AndroidShell(name, config), FOLDER, controller)


class AndroidShell:
    """A transport: one ``adb shell`` a command. Without a terminal it passes bytes and exit codes on as they are."""

    def __init__(self, name: str, config: AdbConfig) -> None:
        self._name, self._config = name, config

    def run(self, command: str, data: bytes, timeout_s: float, most: int) -> Done:
        arguments = ["adb", "-s", self._config.adb, "shell", "-T", command]
        try:
            code, out, error = pipes.run(arguments, data, timeout_s, most)
        except FileNotFoundError as missing:
            raise EnvironmentMissing(
                f"device {self._name}: there is no adb on this machine; install Android's platform tools"
            ) from missing
        return Done(code, out, error.decode(errors="replace"))

    def explain(self, done: Done) -> None:
        lines = [line for line in done.error.splitlines() if line.startswith(("adb:", "error:"))]
        said = lines[-1][:300] if lines else ""
        for words, meaning in LASTING.items():
            if words in said:
                raise EnvironmentMissing(f"device {self._name}: {meaning} (adb says: {said})")
        if any(words in said for words in PASSING):
            raise LinkLost(f"there is no connection to {self._config.adb} (adb says: {said})")
