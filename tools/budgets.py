"""Print the files and functions that have outgrown their budget: 400 lines a file, 60 a function.

Facts, not failures: outgrowing one is a design question. Always exits 0 when every file parses.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

FILE_LINES = 400
FUNCTION_LINES = 60
FOLDERS = ("src", "tests", "tools", "benchmarks", "examples")


def outgrown(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (lines, sentence) for the file and for each function in it that is over budget."""
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    if lines > FILE_LINES:
        yield lines, f"{path}: {lines} lines (budget {FILE_LINES})"
    for node in ast.walk(ast.parse(text, filename=str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                yield length, f"{path}:{node.lineno} {node.name}: {length} lines (budget {FUNCTION_LINES})"


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    files = sorted(p for folder in FOLDERS for p in (root / folder).rglob("*.py"))
    found = [
        row
        for path in files
        for row in outgrown(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    ]
    total = sum(path.read_text(encoding="utf-8").count("\n") for path in files)
    for _, sentence in sorted(found, reverse=True):
        print(sentence)
    print(f"budgets: {len(files)} files, {total} lines, {len(found)} over budget")


if __name__ == "__main__":
    main()
