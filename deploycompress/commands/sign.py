"""``deploycompress sign``: put a signature over every file of a run directory beside them."""

from __future__ import annotations

from pathlib import Path

import click

PASSWORD = "DEPLOYCOMPRESS_KEY_PASSWORD"


@click.command("sign")
@click.argument("run_dir", metavar="RUN_DIR", type=click.Path(path_type=Path))
@click.option(
    "--key",
    required=True,
    type=click.Path(path_type=Path),
    metavar="KEY",
    help=f"The private key, PEM, elliptic curve; its password, if any, in {PASSWORD}.",
)
def command(run_dir: Path, key: Path) -> None:
    """Sign every file in RUN_DIR, and once more those in its artifacts/, which travel alone.

    The signatures, model.sig, are OpenSSF model-signing's (a Sigstore bundle); nothing is sent anywhere.
    """
    import os

    from deploycompress.commands.signing import sign

    for signature in sign(run_dir, key, os.environ.get(PASSWORD)):
        click.echo(f"signed: {signature}")
