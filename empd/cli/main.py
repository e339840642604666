"""`empd`: parses, runs a command, and turns every error into one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from empd import __version__
from empd.cli.codes import MEANINGS, ExitCode, code_of
from empd.cli.commands import Lazy
from empd.errors import ConfigError, EmpdError

_EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code.value:<4} {text}" for code, text in MEANINGS.items())


@click.command(
    cls=Lazy,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    invoke_without_command=False,
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def empd() -> None:
    """One daemon for one GPU box: takes jobs, loses none, gives each to exactly one worker at a time.

    \b
      empd run                          start the daemon
      empd submit echo '{"x": 1}' --wait
      empd status

    Every command that reads takes --json. `empd COMMAND --help` tells more.
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line; returns its exit code. Errors are on stderr, one line each."""
    try:
        code = empd.main(None if arguments is None else list(arguments), prog_name="empd", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return ExitCode.USAGE
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (`{context.command_path} --help` tells more)" if context is not None else ""
        return _complain(f"{_one_line(error.format_message()).rstrip('.,')}{hint}", ExitCode.USAGE)
    except (click.Abort, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    except ConfigError as error:
        for problem in error.problems:
            _complain(problem, ExitCode.USAGE)
        return ExitCode.USAGE
    except EmpdError as error:
        return _complain(_one_line(str(error)), code_of(error))
    except SystemExit:
        # Click's answer to a reader that has seen enough (`| head`), which is no failure.
        return ExitCode.OK
    except BrokenPipeError:
        # The same at our own flush; the interpreter's, at exit, must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except OSError as error:
        return _complain(f"{error.filename or 'the system says'}: {error.strerror or error}", ExitCode.USAGE)
    return code if isinstance(code, int) else ExitCode.OK


def main() -> None:
    """The script `empd`."""
    sys.exit(run())


def _complain(text: str, code: ExitCode) -> int:
    print(f"empd: {text}", file=sys.stderr)
    return code


def _one_line(text: str) -> str:
    return " ".join(text.split())
