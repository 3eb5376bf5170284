"""Whether code of the user's own may be imported: yes, until somebody refuses it."""

from __future__ import annotations

import os
import sys

# Set, and not 0: nothing is imported but what is installed. Every process that this one starts sees it too.
NO_USER_CODE = "DEPLOYCOMPRESS_NO_USER_CODE"
REFUSED = (
    "{!r} is code of one's own, which --no-user-code refuses; expected a built-in, "
    "deploycompress.examples.NAME:function, torchvision:NAME or timm:NAME"
)


def user_code_is_refused() -> bool:
    return os.environ.get(NO_USER_CODE, "0") not in ("", "0")


def refuse_user_code() -> None:
    """From now on no code of the user's is imported, here and in every process that is started from here.

    The current folder is no place to import from either: an ``onnx.py`` in it would be taken for the library.
    """
    os.environ[NO_USER_CODE] = "1"
    os.environ["PYTHONSAFEPATH"] = "1"  # of the processes that are started with -m
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if sys.path and sys.path[0] in ("", os.getcwd()) and sys.path[0] not in given:
        del sys.path[0]
