"""`verify`: the table of checks, and one pack's masks drawn in colours."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flan_tune.checks.preflight import check_recipe, pack_settings
from flan_tune.errors import EXIT_WRONG_INPUT
from flan_tune.packing.compile import open_tokenizer
from flan_tune.train import matching_packs

if TYPE_CHECKING:
    from rich.text import Text

    from flan_tune.checks.verify import Audit, Verification

_SHADES = " ░▒▓█"  # by the share of a cell's pairs that may meet
_SHOWN_SEGMENTS = 12


def verify_command(path: Path, overrides: Sequence[str], *, pack: int | None, packs: str | None, as_json: bool) -> int:
    """Runs every check of a recipe and prints them; the exit code, 1 if one failed."""
    from flan_tune.checks.verify import verify

    recipe = check_recipe(path, overrides).require()
    settings = pack_settings(recipe, packs)
    tokenizer = open_tokenizer(settings)
    reader = matching_packs(settings, tokenizer, shlex.join([str(path), *overrides]))
    found = verify(recipe, tokenizer, reader, pack)
    if as_json:
        print(json.dumps(found.as_json(), ensure_ascii=False))
    else:
        _print(path, found)
    return 0 if found.passed else EXIT_WRONG_INPUT


def _print(path: Path, found: Verification) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    if found.audit is not None:
        _print_audit(console, found.audit)
    table = Table(title=str(path), title_justify="left", show_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("")
    table.add_column("found", overflow="fold")
    for check in found.checks:
        table.add_row(check.name, "[green]ok[/]" if check.passed else "[bold red]FAILED[/]", _plain(check.found))
    console.print(table)


def _plain(text: str) -> Text:
    from rich.text import Text

    return Text(text)  # brackets in it are no colours


def _print_audit(console: object, audit: Audit) -> None:
    from rich.console import Console

    assert isinstance(console, Console)
    told = [f"{one.pairs:,} pairs of query and key may meet, {one.share:.1%} of the row's" for one in audit.drawn]
    filled = f"pack {audit.pack}: {_filled(audit)}, {len(audit.segments)} segments"
    if audit.max_target_length is None:
        filled += f", {told[0]}"
    console.print(filled)
    shown = ", ".join(f"{prefix}+{tokens - prefix}" for tokens, prefix in audit.segments[:_SHOWN_SEGMENTS])
    more = f", and {len(audit.segments) - _SHOWN_SEGMENTS} more" if len(audit.segments) > _SHOWN_SEGMENTS else ""
    console.print(f"segments, inputs+others: {shown}{more}")
    console.print("a row is a query, a column a key; [cyan]█[/] looks ahead too (a prefix), [green]█[/] only back")
    for mask, words in zip(audit.drawn, told, strict=True):
        if audit.max_target_length is not None:
            console.print(f"{mask.name}: {words}")
        for kept, ahead in zip(mask.kept, mask.ahead, strict=True):
            console.print(_drawn(kept, ahead))


def _filled(audit: Audit) -> str:
    if audit.max_target_length is None:
        return f"{audit.tokens} of {audit.max_length} tokens"
    inputs = sum(prefix for _, prefix in audit.segments)
    return f"{inputs} of {audit.max_length} + {audit.tokens - inputs} of {audit.max_target_length} tokens"


def _drawn(kept: list[float], ahead: list[bool]) -> Text:
    """One row of cells, two characters wide each, since characters are about twice as high."""
    from rich.text import Text

    line = Text(no_wrap=True)
    for share, looks_ahead in zip(kept, ahead, strict=True):
        line.append(_SHADES[math.ceil(share * (len(_SHADES) - 1))] * 2, style="cyan" if looks_ahead else "green")
    return line
