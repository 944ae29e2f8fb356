"""The command line: a group that imports a command only when it runs, so that help comes at once."""

from __future__ import annotations

import atexit
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from transfiner_refine._version import __version__
from transfiner_refine.cli.options import notice

__all__ = ["end_program", "main"]

# name: (module with a click command named "command", what the list of commands says of it)
_COMMANDS = {
    "demo": ("transfiner_refine.cli.demo", "Refine bundled photos and make a page: try it."),
    "refine": ("transfiner_refine.cli.refine", "Sharpen the masks of a results file or a folder."),
    "merge": ("transfiner_refine.cli.merge", "Write one output from the shards of a run."),
    "evaluate": ("transfiner_refine.cli.evaluate", "Score masks against the truth, before and after."),
    "report": ("transfiner_refine.cli.report", "Make a page that shows masks before and after."),
    "explain": ("transfiner_refine.cli.explain", "Draw how the method works on one mask."),
    "convert-masks": ("transfiner_refine.cli.convert_masks", "Write masks in another format."),
    "convert-weights": (
        "transfiner_refine.cli.convert_weights",
        "Turn an official checkpoint into a safetensors file.",
    ),
    "export": ("transfiner_refine.cli.export", "Write the refine step as ONNX programs."),
    "weights": ("transfiner_refine.cli.weights", "List the built-in weights, or describe a checkpoint."),
    "train": ("transfiner_refine.cli.train", "Train weights on COCO-format data."),
}
_RENAMED = {"convert": "convert-weights"}  # old: new; the old names work until the next version
_is_program = False  # it runs by itself, not in another program or a test
_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class _OneLineError(click.ClickException):
    """An error as click shows it: one line on stderr, exit code 1, or 2 for wrong usage."""

    def show(self, file: Any = None) -> None:
        click.echo(f"transfiner-refine: error: {self.message}", err=True, file=file)


def end_program(code: int, last: Path | None = None) -> None:
    """Ends this process at once, if it is the program.

    Taking down an interpreter with PyTorch in it lasts long enough to be killed in, and then a run that is done
    would seem to be none. ``last`` is a file to remove at the very end.
    """
    if not _is_program:
        return
    with suppress(OSError, ValueError):  # nobody reads: the usual way says so
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        if last is not None:
            last.unlink()
        os._exit(code)


class _UsageError(_OneLineError):
    """The same for a command line that is wrong in itself."""

    exit_code = 2


@contextmanager
def _usage_in_one_line() -> Iterator[None]:
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        path = "transfiner-refine" if error.ctx is None else error.ctx.command_path
        message = " ".join(error.format_message().split()).rstrip(".")
        raise _UsageError(f"{message} (see {path} --help)") from error


class _Commands(click.Group):
    """A group over ``_COMMANDS``, and the one place where errors become exit codes."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Runs a command; without arguments as a program, which ends as soon as the command is done."""
        global _is_program
        _is_program = not (arguments or keywords)
        if _is_program:
            for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
                if getattr(sys, name) is None:  # closed, or of a program without a console
                    setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115  until the end
        try:
            return super().__call__(*arguments, **keywords)
        except SystemExit as end:
            if isinstance(end.code, int):
                end_program(end.code)
            raise

    def make_context(self, *arguments: Any, **keywords: Any) -> click.Context:
        with _usage_in_one_line():
            return super().make_context(*arguments, **keywords)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in (*_COMMANDS, *_RENAMED) and not args[0].startswith("-"):
            near = get_close_matches(args[0], [*_COMMANDS], 2, 0.6)
            raise click.UsageError(
                f"there is no command {args[0]!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""),
                ctx,
            )
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name in _RENAMED:
            notice(cmd_name, cmd_name := _RENAMED[cmd_name])
        if cmd_name not in _COMMANDS:
            return None
        command = import_module(_COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_text) for name, (_, help_text) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        # Pillow warns of damage in metadata, with a line of its source; what matters comes as an error of ours
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            with _usage_in_one_line():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.exceptions.Abort):
            raise  # click's own: usage, help, --version
        except Exception as error:
            from transfiner_refine.errors import MaskRefineError  # here, because it imports numpy

            if isinstance(error, ModuleNotFoundError) and error.name in ("torch", "torchvision"):
                from transfiner_refine.refine.engine import require_torch

                try:
                    require_torch()
                except MaskRefineError as missing:
                    error = missing
            if isinstance(error, MaskRefineError):
                raise _OneLineError(str(error)) from error
            raise
        except KeyboardInterrupt as stop:  # its text, where there is one, says how to go on
            click.echo(f"transfiner-refine: {str(stop) or 'interrupted'}", err=True)
            ctx.exit(_INTERRUPTED)


@click.command(
    "transfiner-refine",
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 all done, 1 something could not be used (named on stderr), 2 wrong usage, "
    "130 interrupted.",
)
@click.version_option(__version__, prog_name="transfiner-refine")
def main() -> None:
    """Make the instance masks of any detector sharp, after the fact."""
