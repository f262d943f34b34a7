"""The command ``edgescribe``: a table of subcommands, each imported only when it is called.

Names and short helps stand in the table, so that ``edgescribe --help`` and shell completion need neither
torch nor an engine. See :mod:`edgescribe.sdk.console` for what all commands have in common.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import click

from . import __version__
from .sdk.console import debug_option, run_cli


class Entry(NamedTuple):
    """Where a subcommand is (module, attribute) and what it does, in a few words."""

    module: str
    attribute: str
    help: str


_WORKBENCH, _DEVICE = ".converters.commands.", ".sdk.commands."
COMMANDS = {
    "convert": Entry(_WORKBENCH + "convert", "convert", "Take a checkpoint to a bundle that fits a device."),
    "plan": Entry(_WORKBENCH + "plan", "plan", "Choose a recipe for a student and a device."),
    "prune": Entry(_WORKBENCH + "prune", "prune", "Take heads, neurons, layers, width or vocabulary out."),
    "recover": Entry(_WORKBENCH + "recover", "recover", "Train a pruned student on the grid it is exported on."),
    "export": Entry(_WORKBENCH + "export", "export", "Write a student's artifacts for the runtimes."),
    "evaluate": Entry(_WORKBENCH + "evaluate", "evaluate", "Score a student or a bundle on a data file."),
    "run": Entry(_DEVICE + "run", "run", "Classify, tag or embed texts with a bundle."),
    "bench": Entry(_DEVICE + "bench", "bench", "Measure a bundle's latency and memory on this machine."),
    "check": Entry(_DEVICE + "check", "check", "Tell whether a bundle keeps a device's budget."),
    "inspect": Entry(_DEVICE + "inspect", "inspect", "Tell what is in a bundle."),
    "devices": Entry(_DEVICE + "devices", "devices", "List, show and measure device profiles."),
    "doctor": Entry(_DEVICE + "doctor", "doctor", "Tell what works on this machine and what does not."),
    "completion": Entry(_DEVICE + "completion", "completion", "Print the completion script for a shell."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when called; their names and helps come from :data:`COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table, which is the order of the work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module and take the command out of it."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        found = getattr(importlib.import_module(entry.module, __package__), entry.attribute)
        if not isinstance(found, click.Command):
            raise TypeError(f"{entry.module}:{entry.attribute} is not a click command")
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands in the help without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Offer names from the table, again without importing them."""
        from click.shell_completion import CompletionItem

        names = [CompletionItem(name, help=COMMANDS[name].help) for name in COMMANDS if name.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, but a name that is not in the table gets an error with the nearest ones."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            from difflib import get_close_matches

            begun = [name for name in COMMANDS if name.startswith(args[0])]
            near = begun or get_close_matches(args[0], COMMANDS, n=2)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    "edgescribe",
    cls=LazyGroup,
    params=[debug_option()],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="edgescribe", message="%(prog)s %(version)s")
def edgescribe() -> None:
    """Put a distilled student language model on a small device, and prove that it fits there.

    Every command takes --json. Exit codes: 0 done, 1 a fault of edgescribe, 2 wrong usage, 3 over budget,
    4 bad input, 5 an engine or extra is missing, 130 interrupted.
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: without the program's name; those of this process by default.
    """
    return run_cli(edgescribe, sys.argv[1:] if arguments is None else arguments, "edgescribe")


def main() -> None:
    """Entry point of the command ``edgescribe``."""
    sys.exit(run())


if __name__ == "__main__":
    main()
