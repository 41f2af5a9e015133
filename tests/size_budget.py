"""Reports lines per folder and fails where a function or file of the package is over the house limits. Standard library only.

python tests/size_budget.py                    # report and check
python tests/size_budget.py --against main     # also the difference to a git revision
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

MAX_FUNCTION, MAX_FILE = 60, 500
ROOT = Path(__file__).parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="git revision to compare with")
    before = lines_at(against) if (against := parser.parse_args().against) else {}
    now = {str(path.relative_to(ROOT)): path.read_text() for path in sorted((ROOT / "ramet").rglob("*.py"))}
    report(count_by_folder(now), count_by_folder(before))
    found = [problem for path, text in now.items() for problem in problems(path, text)]
    print("\n".join(found))
    return 1 if found else 0


def lines_at(revision: str) -> dict[str, str]:
    """Package files of a git revision: path → text."""
    listed = _git("ls-tree", "-r", "--name-only", revision, "ramet").splitlines()
    return {path: _git("show", f"{revision}:{path}") for path in listed if path.endswith(".py")}


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def count_by_folder(files: dict[str, str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for path, text in files.items():
        counts[str(Path(path).parent)] += sum(1 for line in text.splitlines() if line.strip())
    return counts


def report(now: Counter[str], before: Counter[str]) -> None:
    for folder in sorted(now | before):
        difference = f"  {now[folder] - before[folder]:+6}" if before else ""
        print(f"{now[folder]:7} {folder}{difference}")
    difference = f"  {now.total() - before.total():+6}" if before else ""
    print(f"{now.total():7} lines that are not blank, in all{difference}")


def problems(path: str, text: str) -> list[str]:
    found = []
    if (lines := text.count("\n")) > MAX_FILE:
        found.append(f"{path}: {lines} lines (limit {MAX_FILE})")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION:
                found.append(f"{path}:{node.lineno} {node.name}: {length} lines (limit {MAX_FUNCTION})")
    return found


if __name__ == "__main__":
    sys.exit(main())
