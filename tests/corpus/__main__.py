"""Run the corpus's steps over every Parquet file of a folder, and print a table.

    python -m tests.corpus FOLDER [--every]

Each file has a separate process, so that software which ends its process on a file ends only that one.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.corpus.one_process import run
from tests.corpus.round_trip import FAILED, FINE, REFUSED, SKIPPED


def main() -> int:
    """Print a row for each file; return 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.corpus", description=__doc__)
    parser.add_argument("folder", type=Path, help="a file, or a folder with Parquet files at any depth")
    parser.add_argument("--every", action="store_true", help="list the files that are fine, too")
    arguments = parser.parse_args()
    folder = arguments.folder
    files = (
        [folder]
        if folder.is_file()
        else sorted(path for path in folder.rglob("*.parquet*") if path.is_file())
    )
    table = Table("file", "steps", "fine", "refused", "failed", "not compared", "what")
    counts: Counter[str] = Counter()
    failed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, found in zip(files, pool.map(run, files), strict=True):
            each = Counter(step.outcome for step in found)
            counts += each
            failed += bool(each[FAILED])
            seen: dict[str, str] = {}
            for step in found:
                if step.outcome in (REFUSED, FAILED):
                    seen.setdefault(f"{step.outcome} {step.detail}", step.name)
            what = "\n".join(f"{name}: {detail}" for detail, name in seen.items())
            if arguments.every or what:
                name = str(path.relative_to(folder)) if path != folder else path.name
                table.add_row(
                    name, str(len(found)), *(str(each[k]) for k in (FINE, REFUSED, FAILED, SKIPPED)), what
                )
    console = Console(width=None if sys.stdout.isatty() else 220)
    console.print(table)
    total = sum(counts.values())
    console.print(
        f"{len(files):,} files, {total:,} steps: {counts[FINE]:,} fine, {counts[REFUSED]:,} refused with a "
        f"reason, {counts[FAILED]:,} failed, {counts[SKIPPED]:,} not compared, since the other software does "
        "not read the original"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
