"""``deploycompress verify``: is every file of a run directory as it was when it was signed?"""

from __future__ import annotations

from pathlib import Path

import click


@click.command("verify")
@click.argument("run_dir", metavar="RUN_DIR", type=click.Path(path_type=Path))
@click.option(
    "--public-key",
    required=True,
    type=click.Path(path_type=Path),
    metavar="KEY",
    help="The public key of whoever signed, PEM.",
)
def command(run_dir: Path, public_key: Path) -> None:
    """Check RUN_DIR, or an artifacts/ folder, against the model.sig in it.

    Exit code 0 where every file is as it was signed and none was added or removed; 4 where not, with each such file;
    2 where the folder or the key cannot be read.
    """
    from deploycompress.commands.signing import verify

    click.echo(f"ok: {verify(run_dir, public_key)} files as they were signed")
