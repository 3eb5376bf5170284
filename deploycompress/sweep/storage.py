"""Opens the database of a study: a file in the sweep's folder, or one that several machines share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploycompress.errors import ConfigError, EnvironmentMissing
from deploycompress.sweep.plan import Sweep

FILE = "study.db"


def open_storage(sweep: Sweep, folder: Path) -> Any:
    """The database of the study: a file in the sweep's folder, or the one that ``storage`` names.

    Raises EnvironmentMissing where Optuna is not installed or the database is away.
    """
    try:
        import optuna
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError, SQLAlchemyError
    except ImportError as error:
        raise EnvironmentMissing(
            f"Optuna, which does the search, is not installed ({error}); pip install 'deploycompress[sweep]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url = sweep.config.storage or f"sqlite:///{folder / FILE}"
    try:
        shown = make_url(url).render_as_string(hide_password=True)
    except ArgumentError as error:
        raise ConfigError(
            f"{sweep.storage_place}: storage: not the URL of a database; expected one such as "
            "postgresql://user@host/name or mysql://user@host/name"
        ) from error
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except ImportError as error:
        raise EnvironmentMissing(
            f"{sweep.storage_place}: storage: the driver for {shown} is not installed ({_first(error)}); install it, as in "
            "pip install psycopg2-binary (PostgreSQL) or pymysql (MySQL)"
        ) from error
    except (SQLAlchemyError, OSError, RuntimeError) as error:
        raise EnvironmentMissing(
            f"{sweep.storage_place}: storage: the database {shown} is not to be had: {_first(error)}; look whether it runs "
            "and can be reached from here, or leave storage out for a file in the sweep's folder"
        ) from error


def _first(error: BaseException) -> str:
    """The first line of what a database says, which may hold the whole URL, and with it a password, further on."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
