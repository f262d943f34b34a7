"""``edgescribe completion``: the script that teaches a shell our commands and options."""

from __future__ import annotations

import click

from ..console import Result, command

INSTALL = {
    "bash": 'eval "$(edgescribe completion bash)"  in ~/.bashrc',
    "zsh": 'eval "$(edgescribe completion zsh)"  in ~/.zshrc',
    "fish": "edgescribe completion fish > ~/.config/fish/completions/edgescribe.fish",
}


@command(epilog="To have it in every shell: " + "; ".join(INSTALL.values()) + ".")
@click.argument("shell", type=click.Choice(list(INSTALL)))
def completion(shell: str) -> Result:
    """Print the completion script for SHELL."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"click has no completion for {shell}")
    root = click.get_current_context().find_root().command
    script = found(root, {}, "edgescribe", "_EDGESCRIBE_COMPLETE").source()
    return Result(data={"shell": shell, "script": script, "install": INSTALL[shell]}, text=script)
