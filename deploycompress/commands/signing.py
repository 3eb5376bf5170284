"""Signatures over a folder of a run, by OpenSSF model-signing with an elliptic-curve key: made and checked offline."""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploycompress.artifact import MANIFEST, digest_file, read_json, walk_files
from deploycompress.errors import ConfigError, EnvironmentMissing, StageFailed

SIGNATURE = "model.sig"
LOCK = ".lock"  # a run's, and not a result
ARTIFACTS = "artifacts"
INSTALL = "pip install 'deploycompress[sign]'"
MOST_TOLD = 20


def sign(folder: Path, key: Path, password: str | None) -> list[Path]:
    """Write ``model.sig`` into ``folder``, and into its artifacts/, which travel alone; gives the signatures.

    Raises ConfigError for what is no folder of ours and for an unfit key, StageFailed where a file is not the one that
    the run recorded, EnvironmentMissing without the library.
    """
    _require_manifest(folder)
    _require_as_recorded(folder)
    inner = folder / ARTIFACTS
    signed = []
    for place in [*([inner] if inner.is_dir() else []), folder]:
        with _library() as library, _key(key, "private"):
            config = library.signing.Config().set_hashing_config(_hashing(library))
            # The library hands it on to cryptography, which takes bytes.
            config.use_elliptic_key_signer(private_key=key, password=password.encode() if password else None)
        try:
            config.sign(place, place / SIGNATURE)
        except ValueError as error:
            raise StageFailed(f"{place} cannot be signed: {error}") from error
        signed.append(place / SIGNATURE)
    return signed


def verify(folder: Path, public_key: Path) -> int:
    """Check every file in ``folder`` against its signature; gives how many there are.

    Raises StageFailed with every file that was changed, added or removed, or where the signature is not of this key;
    ConfigError for what the command names wrongly.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; expected a run directory, or its {ARTIFACTS}/")
    with _library() as library, _key(public_key, "public"):
        config = library.verifying.Config().set_hashing_config(_hashing(library))
        config.use_elliptic_key_verifier(public_key=public_key)
    signature = folder / SIGNATURE
    if signature.is_symlink() or not signature.is_file():
        raise StageFailed(f"{folder} has no {SIGNATURE}: it was not signed, or the signature was taken away")
    links = [path.relative_to(folder).as_posix() for path in walk_files(folder) if path.is_symlink()]
    if links:
        raise StageFailed(f"{folder} is not as it was signed: {links[0]} is a link; a signed folder has none")
    try:
        config.verify(folder, signature)
    except Exception as error:  # of several libraries: keys, bundles, protobuf
        if not str(error).startswith("Signature mismatch"):
            reason = str(error).strip() or type(error).__name__
            raise StageFailed(
                f"{signature} is not a signature by the key {public_key}: {reason}; nothing in {folder} is vouched for"
            ) from error
        raise _changed(folder, _differences(folder, _signed(signature))) from error
    signed, present = _signed(signature), _present(folder)
    if present.keys() != signed.keys():  # below what the library leaves out
        raise _changed(folder, _differences(folder, signed))
    return len(present)


def _changed(folder: Path, told: list[str]) -> StageFailed:
    more = [f"and {len(told) - MOST_TOLD} more"] if len(told) > MOST_TOLD else []
    return StageFailed("\n  ".join([f"{folder} is not as it was signed:", *told[:MOST_TOLD], *more]))


# ---------------------------------------------------------------- what was signed


def _signed(signature: Path) -> dict[str, str]:
    """Name -> digest, of a signature that the library has verified: in-toto in a DSSE envelope."""
    envelope = json.loads(signature.read_text(encoding="utf-8"))["dsseEnvelope"]
    resources = json.loads(base64.b64decode(envelope["payload"]))["predicate"]["resources"]
    return {resource["name"]: resource["digest"] for resource in resources}


def _present(folder: Path) -> dict[str, Path]:
    files = {path.relative_to(folder).as_posix(): path for path in walk_files(folder)}
    return {name: path for name, path in files.items() if name not in (SIGNATURE, LOCK)}


def _differences(folder: Path, signed: dict[str, str]) -> list[str]:
    present = _present(folder)
    common = sorted(present.keys() & signed.keys())
    return [
        *(f"changed: {name}" for name in common if digest_file(present[name]) != signed[name]),
        *(f"added: {name}" for name in sorted(present.keys() - signed.keys())),
        *(f"removed: {name}" for name in sorted(signed.keys() - present.keys())),
    ]


def _require_manifest(folder: Path) -> None:
    if not (folder / MANIFEST).is_file():
        what = "has no manifest.json" if folder.is_dir() else "is no folder"
        raise ConfigError(f"{folder} {what}; expected a run directory, or its {ARTIFACTS}/")


def _require_as_recorded(folder: Path) -> None:
    """Of a run directory: every file that its manifest lists is the one that the run left."""
    try:
        recorded = read_json(folder / MANIFEST).get("files", [])
        wrong = [name for name, sha256, _ in recorded if digest_file(folder / name) != sha256]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise StageFailed(f"{folder} is not signed: {error}; run its pipeline again") from error
    if wrong:
        raise StageFailed(f"{folder} is not signed: {wrong[0]} is not the file that the run left; run again")


# ---------------------------------------------------------------- the library


@contextlib.contextmanager
def _library() -> Iterator[Any]:
    try:
        import model_signing
        import model_signing.hashing
        import model_signing.signing
        import model_signing.verifying
    except ImportError as error:
        raise EnvironmentMissing(f"signatures need model-signing ({error}): {INSTALL}") from error
    yield model_signing


def _hashing(library: Any) -> Any:
    """Every file but the signature and the lock; files of git are files like others."""
    return library.hashing.Config().set_ignored_paths(paths=[SIGNATURE, LOCK], ignore_git_paths=False)


@contextlib.contextmanager
def _key(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, AttributeError, binascii.Error) as error:
        raise ConfigError(
            f"{path} is not a {kind} key that can be used: {error}; expected a PEM file of an elliptic-curve key, as "
            "`openssl ecparam -name prime256v1 -genkey -noout` and `openssl ec -pubout` write it"
        ) from error
    except Exception as error:  # cryptography's own: an unsupported algorithm
        raise ConfigError(f"{path} is not a {kind} key that can be used: {type(error).__name__}") from error
