"""``python -m deploycompress`` is the command ``deploycompress``."""

from deploycompress.cli import main

main()
