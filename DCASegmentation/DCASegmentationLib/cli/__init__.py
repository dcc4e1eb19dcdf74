"""The command line ``dca``: one file for each command.

No file of this package imports torch, MONAI, SimpleITK or slicer before its command runs, so that ``dca --help``
answers at once: the library is imported inside of the commands.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``dca`` with ``arguments`` (those of the process, when None); returns the exit code."""
    from ..home import provide_home
    from .app import build_app
    from .console import prepare_streams
    from .failures import exit_code_of

    given = list(sys.argv[1:] if arguments is None else arguments)
    # Taken out here so that it may stand anywhere, before or after the command.
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    prepare_streams(debug)
    provide_home()
    return exit_code_of(lambda: build_app()(args=given, prog_name="dca", standalone_mode=False), debug)
