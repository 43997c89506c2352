"""`Setting`: what every command needs beside its own arguments."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console


@dataclass(frozen=True)
class Setting:
    """What every command needs beside its own arguments.

    Args:
        console: where it prints.
        module_paths: folders that a person's own modules are imported from, on workers too.
        allow: modules of a person's own that a run folder's config may name.
    """

    console: Console
    module_paths: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()

    def say(self, text: str) -> None:
        """A plain line, not wrapped: what is copied from it stays whole."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
