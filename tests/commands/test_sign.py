"""``sign`` and ``verify``: every changed, added or removed file is found and named."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploycompress.artifact import digest_file, write_json
from deploycompress.cli import group
from deploycompress.commands import signing
from deploycompress.errors import ConfigError, EnvironmentMissing, StageFailed

pytest.importorskip("OpenSSL", reason="pyopenssl is missing, which model-signing imports")
pytest.importorskip("model_signing", reason="model-signing is missing: pip install 'deploycompress[sign]'")

from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

FILES = (
    "report.json",
    "04-export/model.onnx",
    "artifacts/model.onnx",
    "artifacts/manifest.json",
    ".jobs/export.json",
)


def keys(folder: Path, name: str = "key", password: str | None = None) -> tuple[Path, Path]:
    private = ec.generate_private_key(ec.SECP256R1())
    hidden = pem.BestAvailableEncryption(password.encode()) if password else pem.NoEncryption()
    secret, public = folder / f"{name}.pem", folder / f"{name}.pub"
    secret.write_bytes(private.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, hidden))
    public.write_bytes(
        private.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    )
    return secret, public


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    run_dir = tmp_path / "run"
    for name in FILES:
        (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (run_dir / name).write_text(f"what was in {name}")
    (run_dir / ".lock").touch()
    recorded = [[name, digest_file(run_dir / name), 1] for name in FILES[:3]]
    write_json(run_dir / "manifest.json", {"schema": 1, "files": recorded})
    return run_dir


@pytest.fixture
def signed(run_dir: Path, tmp_path: Path) -> tuple[Path, Path]:
    private, public = keys(tmp_path)
    assert signing.sign(run_dir, private, None) == [run_dir / "artifacts/model.sig", run_dir / "model.sig"]
    return run_dir, public


def test_what_was_signed_is_verified_wherever_it_lies(signed: tuple[Path, Path], tmp_path: Path) -> None:
    run_dir, public = signed
    assert signing.verify(run_dir, public) == len(FILES) + 2  # manifest.json, and the signature of artifacts/
    shutil.copytree(run_dir / "artifacts", tmp_path / "elsewhere")
    assert signing.verify(tmp_path / "elsewhere", public) == 2
    (run_dir / ".lock").write_text("another run looked")
    signing.verify(run_dir, public)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    **{f"flip {name}": (lambda run, name=name: flip(run / name), f"changed: {name}") for name in FILES},
    **{f"remove {name}": (lambda run, name=name: (run / name).unlink(), f"removed: {name}") for name in FILES},
    "truncate": (lambda run: (run / FILES[1]).write_bytes(b""), f"changed: {FILES[1]}"),
    "rename": (lambda run: (run / FILES[1]).rename(run / "04-export/x"), "added: 04-export/x\n  removed: 04-export/"),
    "swap": (lambda run: shutil.copy(run / FILES[0], run / FILES[1]), f"changed: {FILES[1]}"),
    "add": (lambda run: (run / "artifacts/x.so").touch(), "added: artifacts/x.so"),
    "add a hidden one": (lambda run: (run / ".jobs/.x").touch(), "added: .jobs/.x"),
    "add one of git's": (lambda run: (run / ".gitattributes").touch(), "added: .gitattributes"),
    "add below what is left out": (
        lambda run: ((run / ".lock").unlink(), (run / ".lock").mkdir(), (run / ".lock/x").touch()),
        "added: .lock/x",
    ),
    "add a signature": (lambda run: (run / "04-export/model.sig").touch(), "added: 04-export/model.sig"),
    "link": (lambda run: ((run / FILES[1]).unlink(), (run / FILES[1]).symlink_to("/etc/hostname")), "is a link"),
    "replace the inner signature": (lambda run: flip(run / "artifacts/model.sig"), "changed: artifacts/model.sig"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_found_and_named(signed: tuple[Path, Path], name: str) -> None:
    run_dir, public = signed
    change, told = CHANGES[name]
    change(run_dir)
    with pytest.raises(StageFailed) as refused:
        signing.verify(run_dir, public)
    assert told in str(refused.value)


def test_all_changes_are_told_at_once(signed: tuple[Path, Path]) -> None:
    run_dir, public = signed
    flip(run_dir / FILES[0])
    (run_dir / FILES[1]).unlink()
    (run_dir / "new\n::error::x").touch()
    with pytest.raises(StageFailed) as refused:
        signing.verify(run_dir, public)
    lines = str(refused.value).splitlines()
    assert lines[1] == f"  changed: {FILES[0]}" and lines[-1] == f"  removed: {FILES[1]}"


def forged(signature: Path, change: Callable[[dict[str, list[dict[str, str]]]], object]) -> None:
    """The statement changed, the signature under it as it was."""
    bundle = json.loads(signature.read_text())
    payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    change(payload["predicate"])
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    signature.write_text(json.dumps(bundle))


@pytest.mark.parametrize(
    "damage",
    [
        lambda sig: sig.write_text("{"),
        lambda sig: sig.write_bytes(b"\xff\x00"),
        lambda sig: sig.write_text("{}"),
        lambda sig: sig.write_text(json.dumps({"dsseEnvelope": {}})),
        lambda sig: sig.write_text("[" * 100_000),
        lambda sig: forged(sig, lambda predicate: predicate["resources"].pop()),
        lambda sig: forged(
            sig, lambda predicate: predicate["serialization"].update(ignore_paths=["04-export"])
        ),
        lambda sig: sig.unlink(),
        lambda sig: (sig.rename(sig.with_name("other")), sig.symlink_to("other")),
    ],
)
def test_a_signature_that_is_none_vouches_for_nothing(
    signed: tuple[Path, Path], damage: Callable[[Path], object]
) -> None:
    run_dir, public = signed
    damage(run_dir / "model.sig")
    with pytest.raises(StageFailed, match=r"is not a signature by the key|has no model.sig"):
        signing.verify(run_dir, public)


def test_another_key_and_another_run(signed: tuple[Path, Path], tmp_path: Path) -> None:
    run_dir, public = signed
    _, other = keys(tmp_path, "other")
    with pytest.raises(StageFailed, match="is not a signature by the key"):
        signing.verify(run_dir, other)
    shutil.copy(run_dir / "artifacts/model.sig", run_dir / "model.sig")
    with pytest.raises(StageFailed, match=r"added: \.jobs/export\.json"):
        signing.verify(run_dir, public)


def test_what_the_run_did_not_leave_is_not_signed(run_dir: Path, tmp_path: Path) -> None:
    private, _ = keys(tmp_path)
    flip(run_dir / FILES[1])
    with pytest.raises(StageFailed, match=r"04-export/model\.onnx is not the file that the run left"):
        signing.sign(run_dir, private, None)
    assert not list(run_dir.rglob("model.sig"))


def test_keys_that_cannot_be_used(run_dir: Path, tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    locked, _ = keys(tmp_path, "locked", "secret")
    other = tmp_path / "ed25519.pem"
    raw = ed25519.Ed25519PrivateKey.generate()
    other.write_bytes(raw.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption()))
    for key, password in (
        (public, None),
        (tmp_path / "none", None),
        (locked, None),
        (locked, "wrong"),
        (other, None),
    ):
        with pytest.raises(ConfigError, match="is not a private key that can be used"):
            signing.sign(run_dir, key, password)
    signing.sign(run_dir, locked, "secret")
    for key in (private, tmp_path / "none", run_dir / "report.json"):
        with pytest.raises(ConfigError, match="is not a public key that can be used"):
            signing.verify(run_dir, key)


def test_without_the_library_the_remedy_is_told(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "model_signing", None)
    with pytest.raises(EnvironmentMissing, match=r"pip install 'deploycompress\[sign\]'"):
        signing.sign(run_dir, keys(tmp_path)[0], None)


def test_the_commands(run_dir: Path, tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    runner = CliRunner()
    done = runner.invoke(group, ["sign", str(run_dir), "--key", str(private)])
    assert (done.exit_code, done.output.count("signed: ")) == (0, 2)
    done = runner.invoke(group, ["verify", str(run_dir), "--public-key", str(public)])
    assert done.output == "ok: 7 files as they were signed\n"
    flip(run_dir / FILES[0])
    done = runner.invoke(group, ["verify", str(run_dir), "--public-key", str(public)])
    assert isinstance(done.exception, StageFailed) and done.exception.exit_code == 4
    for arguments in (["verify", str(tmp_path / "none")], ["verify", str(run_dir / "report.json")]):
        done = runner.invoke(group, [*arguments, "--public-key", str(public)])
        assert isinstance(done.exception, ConfigError)
    done = runner.invoke(group, ["sign", str(tmp_path), "--key", str(private)])
    assert isinstance(done.exception, ConfigError) and "expected a run directory" in str(done.exception)
