"""``dca experiment learning``: what a model learns from a few corrected cases."""

from __future__ import annotations

from pathlib import Path

from .bundle import load
from .console import output, progress_bar, say_plain, table

LEARNING = "learning"
_MODEL = "dca-synthetic"


def run_learning(
    bundle: str | None, out: Path, cache: Path, seeds: tuple[int, ...], steps: int | None, device: str
) -> None:
    """Run or resume it in ``out`` and print its table."""
    from ..evaluation.experiments import learning
    from ..inference.allocator import keep_freed_memory
    from ..inference.device import choose_device

    keep_freed_memory()
    model = load(bundle or _MODEL)
    changes = {} if steps is None else {"steps": steps}
    with progress_bar() as progress:
        outcome = learning.run_learning(
            model, out, cache, seeds, changes, device=str(choose_device(device).torch_device), progress=progress
        )
    made = learning.rows(outcome, model)
    columns = tuple(made[0])
    shown = table(
        f"{model.metadata.name}, synthetic people of one scanner it does not know: Dice, {len(seeds)} seeds",
        *columns,
        numbers=columns[2:],
    )
    for row in made:
        shown.add_row(*row.values())
    output().print(shown)
    say_plain(f"Written: {out / LEARNING}.csv, .md and .json")
