"""Opens the database of a study: a file in the sweep's folder, or one that several machines share."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploycompress.errors import ConfigError, EnvironmentMissing
from deploycompress.sweep.plan import Sweep

FILE = "study.db"
PAUSES_S = (0.5, 1.0, 2.0)  # until another machine has made its tables
# SQLAlchemy's name of a driver -> what is installed, where that is called otherwise.
INSTALLED_AS = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "mysqldb": "mysqlclient"}


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
        return _opened(lambda: optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True}))
    except ImportError as error:
        driver = make_url(url).get_dialect().driver
        raise EnvironmentMissing(
            f"{sweep.storage_place}: storage: the driver {driver} for {shown} is not installed; pip install "
            f"{INSTALLED_AS.get(driver, driver)}"
        ) from error
    except (SQLAlchemyError, OSError, RuntimeError) as error:
        raise EnvironmentMissing(
            f"{sweep.storage_place}: storage: the database {shown} is not to be had: {_first(error)}; look whether it runs "
            "and can be reached from here, or leave storage out for a file in the sweep's folder"
        ) from error


def _opened(connect: Callable[[], Any]) -> Any:
    """Two machines that begin at once both make the tables of a new database, and one of them is refused."""
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    for pause_s in PAUSES_S:
        try:
            return connect()
        except (IntegrityError, ProgrammingError):
            time.sleep(pause_s)
    return connect()


def _first(error: BaseException) -> str:
    """The first line of what a database says, which may hold the whole URL, and with it a password, further on."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
