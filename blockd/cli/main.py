"""The entry point of `blockctl`: how a run begins and ends."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run `blockctl`; leaves with one of the exit codes of `failures.Code`."""
    code = 0
    try:
        from .app import run  # noqa: PLC0415 - so that Ctrl-C while it loads is no traceback

        code = run(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("blockctl: interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of our output has left: nothing to say
        _drop_stdout()
    except OSError as err:
        print(f"blockctl: cannot write the output: {err.strerror}", file=sys.stderr)
        _drop_stdout()
        code = 1
    sys.exit(code)


def _drop_stdout() -> None:
    """Keep the interpreter from flushing, and failing, again (docs.python.org, signal, SIGPIPE)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
