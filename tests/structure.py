"""Measure the shape of the code and its prose; `python tests/structure.py [PATH ...]` prints the report.

`tests/test_structure.py` holds the limits. With paths, only these files are reported, each finding on a line.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("agent", "envs", "planners", "worldmodel")
MAY_IMPORT = {
    "agent": {"agent", "envs", "planners", "worldmodel"},
    **{name: {name} for name in PACKAGES[1:]},
}
"""Packages that each package may import from."""
CLASS_LINES, FUNCTION_LINES = 300, 50
ARGUMENTS, MANY_ARGUMENTS = 7, 5
NODES_PER_LINE = 11.0
SENTENCE_WORDS, OPENING_WORDS = 25, 15
README_LINES, README_WORDS, README_MEAN_WORDS = 250, 2000, 15
FORBIDDEN = re.compile(
    r"\b(foreseen|foresees?|nobody|whoever|anew|alike|judged?|judges|meant|asked|told|tells?|beside|dreams?|dreamt)\b"
    r"|for people|if nothing else is said",
    re.IGNORECASE,
)
"""Words and phrases outside the field's vocabulary."""
SHAPE = re.compile(
    r"\s*[`\w.]+(, [`\w.]+)*:? (.*)?(\[|int64|int32|float32|bool|uint8)|\s*[`\w.]+: "
)
"""A line that documents the shape or meaning of one name: a sentence of its own."""
OPENING = re.compile(r"(Of|What|Which|Whether|Where|As)\b")

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def sources(*paths: str | Path) -> list[Path]:
    """Return the Python files of the four packages and `lssvwm.py`, or those under `paths`."""
    folders = [Path(path) for path in paths] or [
        ROOT / "lssvwm.py",
        *(ROOT / name for name in PACKAGES),
    ]
    found = [
        file
        for path in folders
        for file in ([path] if path.suffix == ".py" else sorted(path.rglob("*.py")))
    ]
    return [file.resolve() for file in found]


def tree(file: Path) -> ast.Module:
    """Parse a file."""
    return ast.parse(file.read_text(encoding="utf-8"))


def definitions(file: Path) -> Iterator[tuple[str, Definition]]:
    """Yield "path:line name" and the node of every function and class."""
    for node in ast.walk(tree(file)):
        if isinstance(node, Definition):
            yield f"{file.relative_to(ROOT)}:{node.lineno} {node.name}", node


def lines(node: Definition) -> int:
    """Return the number of lines of a definition, its docstring included."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def long_classes(files: list[Path]) -> list[str]:
    """List classes of more than CLASS_LINES lines."""
    return [
        f"{where}: {lines(node)} lines"
        for file in files
        for where, node in definitions(file)
        if isinstance(node, ast.ClassDef) and lines(node) > CLASS_LINES
    ]


def long_functions(files: list[Path]) -> list[str]:
    """List functions of more than FUNCTION_LINES lines."""
    return [
        f"{where}: {lines(node)} lines"
        for file in files
        for where, node in definitions(file)
        if not isinstance(node, ast.ClassDef) and lines(node) > FUNCTION_LINES
    ]


def wide_functions(files: list[Path]) -> list[str]:
    """List functions of ARGUMENTS or more arguments, `self` and `cls` not counted."""
    found = []
    for file in files:
        for where, node in definitions(file):
            if isinstance(node, ast.ClassDef):
                continue
            names = [
                a.arg
                for a in (
                    *node.args.posonlyargs,
                    *node.args.args,
                    *node.args.kwonlyargs,
                )
            ]
            count = len([name for name in names if name not in ("self", "cls")])
            if count >= ARGUMENTS:
                found.append(f"{where}: {count} arguments")
    return found


def nodes_per_line(files: list[Path]) -> float:
    """Return nodes of the syntax tree per line of code.

    Blank lines, comments and docstrings do not count as code.
    """
    nodes = code = 0
    for file in files:
        parsed = tree(file)
        nodes += sum(1 for _ in ast.walk(parsed))
        skipped = {
            line
            for part in _docstring_nodes(parsed)
            for line in range(part.lineno, (part.end_lineno or 0) + 1)
        }
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            code += (
                bool(line.strip())
                and not line.strip().startswith("#")
                and number not in skipped
            )
    return nodes / max(1, code)


def _docstring_nodes(parsed: ast.Module) -> list[ast.Expr]:
    """Return every statement that is a bare string: docstrings, and those below attributes."""
    return [
        node
        for node in ast.walk(parsed)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]


def docstrings(files: list[Path]) -> Iterator[tuple[str, str, bool]]:
    """Yield "path:line", text, and whether the text documents a definition, of every docstring."""
    for file in files:
        parsed = tree(file)
        owners = [
            node
            for node in ast.walk(parsed)
            if isinstance(node, (ast.Module, *Definition.__args__))
        ]
        own = {id(node.body[0]) for node in owners if node.body}
        for part in _docstring_nodes(parsed):
            assert isinstance(part.value, ast.Constant)
            yield (
                f"{file.relative_to(ROOT)}:{part.lineno}",
                str(part.value.value),
                id(part) in own,
            )


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a text, without code blocks, tables and list markers.

    A blank line ends a sentence.
    """
    text = re.sub(r"^```.*?^```", "\n", text, flags=re.M | re.S)
    rows = text.splitlines()
    body = [row for row in rows[1:] if row.strip()]
    indent = min((len(row) - len(row.lstrip()) for row in body), default=0)
    paragraph: list[str] = []
    for row in [*rows, ""]:
        row = row[indent:] if row[:indent].isspace() else row
        marker = re.match(r"\s*([-*|]|\d+\.)\s", row)
        marker = marker or SHAPE.match(row)
        code = row.startswith(("    ", "|", ">>>", "#", "```", ":::"))
        if (not row.strip() or marker or code) and paragraph:
            yield from re.split(r"(?<=[.!?:])\s+(?=[A-Z`(\d\[])", " ".join(paragraph))
            paragraph = []
        if row.strip() and not code:
            paragraph.append(re.sub(r"^\s*([-*]|\d+\.)\s", "", row).strip())


def words(sentence: str) -> int:
    """Count the words of a sentence; a code span counts as one."""
    plain = re.sub(r"`[^`]*`|\$[^$]*\$|\[[^\]]*\](\([^)]*\))?", "x", sentence)
    return len([word for word in plain.split() if re.search(r"\w", word)])


def long_sentences(files: list[Path]) -> list[str]:
    """List docstring sentences of more than SENTENCE_WORDS words."""
    return [
        f"{where}: {words(part)} words: {part[:70]}"
        for where, text, _ in docstrings(files)
        for part in sentences(text)
        if words(part) > SENTENCE_WORDS
    ]


def bad_openings(files: list[Path]) -> list[str]:
    """List docstrings that open badly.

    The first word is forbidden, or the first sentence has more than OPENING_WORDS words.
    """
    found = []
    for where, text, owned in docstrings(files):
        first = next(sentences(text.strip()), "")
        if OPENING.match(text.strip()):
            found.append(f"{where}: opens with {text.split()[0]}")
        elif owned and words(first) > OPENING_WORDS:
            found.append(f"{where}: {words(first)} words in the opening: {first[:70]}")
    return found


def private_words(files: list[Path]) -> list[str]:
    """List uses of FORBIDDEN words in names, strings, comments and prose.

    Migrations are left out: they must contain the names of earlier versions. So are code
    spans in Markdown, such as the names of earlier versions in the changelog.
    """
    found = []
    for file in files:
        if file.name == "migration.py":
            continue
        text = file.read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), 1):
            shown = re.sub(r"`[^`]*`", "", line) if file.suffix == ".md" else line
            found += [
                f"{file.relative_to(ROOT)}:{number}: {match.group()}"
                for match in FORBIDDEN.finditer(shown)
            ]
    return found


def pages() -> list[Path]:
    """Return the Markdown files of the repository and the site."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def prose(file: Path) -> str:
    """Return the running text of a Markdown file, without code, tables and directives."""
    text = file.read_text(encoding="utf-8")
    text = re.sub(r"^(`{3,}|:{3,}).*?^\1$", "\n", text, flags=re.M | re.S)
    text = re.sub(r"^\(.*\)=$|^!\[.*$|\*+", "", text, flags=re.M)
    return re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)


def long_prose(files: list[Path]) -> list[str]:
    """List sentences of more than SENTENCE_WORDS words in Markdown files."""
    return [
        f"{file.relative_to(ROOT)}: {words(part)} words: {part[:70]}"
        for file in files
        for part in sentences(prose(file))
        if words(part) > SENTENCE_WORDS
    ]


def mean_words(file: Path) -> float:
    """Return the mean number of words per sentence of a Markdown file."""
    counts = [count for part in sentences(prose(file)) if (count := words(part))]
    return sum(counts) / max(1, len(counts))


def module_name(file: Path) -> str:
    """Return the dotted name below `lssvwm`; the file of a package has the package's name."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(files: list[Path]) -> dict[str, set[str]]:
    """Map every module to the modules of `files` that it imports.

    Imports for type checkers only do not count.
    """
    names = {module_name(file) for file in files}
    return {
        module_name(file): set(_imported(tree(file), names)) - {module_name(file)}
        for file in files
    }


def _imported(parsed: ast.AST, names: set[str]) -> Iterator[str]:
    for node in ast.iter_child_nodes(parsed):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            below = [alias.name.removeprefix("lssvwm.") for alias in node.names]
            yield from [name for name in below if name in names]
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").split(".")[0] == "lssvwm"
        ):
            package = ".".join((node.module or "").split(".")[1:])
            for alias in node.names:
                below = f"{package}.{alias.name}".strip(".")
                yield from [
                    name
                    for name in ([below] if below in names else [package])
                    if name in names
                ]
        yield from _imported(node, names)


def cycles(graph: dict[str, set[str]]) -> list[str]:
    """List every module that can reach itself through imports, with one such way."""
    found = []
    for start in sorted(graph):
        ways, seen = [[start]], set()
        while ways:
            way = ways.pop(0)
            if start in graph.get(way[-1], set()):
                found.append(" -> ".join([*way, start]))
                break
            for name in sorted(graph.get(way[-1], set()) - seen):
                seen.add(name)
                ways.append([*way, name])
    return found


def wrong_directions(graph: dict[str, set[str]]) -> list[str]:
    """List imports against the direction agent -> envs, worldmodel, planners."""
    return [
        f"{name} imports {other}"
        for name, others in sorted(graph.items())
        for other in sorted(others)
        if name.split(".")[0] in MAY_IMPORT
        and other.split(".")[0] not in MAY_IMPORT[name.split(".")[0]]
    ]


def findings(files: list[Path]) -> dict[str, list[str]]:
    """Return everything that breaks a limit, by kind."""
    graph = imports(sources())
    return {
        "classes too long": long_classes(files),
        "functions too long": long_functions(files),
        "functions with many arguments": wide_functions(files),
        "import cycles": cycles(graph),
        "imports against the direction": wrong_directions(graph),
        "docstring sentences too long": long_sentences(files),
        "docstring openings": bad_openings(files),
        "words outside the vocabulary": private_words(files),
    }


def main(paths: list[str]) -> None:
    """Print the report: numbers for each package, then, with paths, every finding."""
    for package in PACKAGES:
        print(
            f"{package:<11} {nodes_per_line(sources(ROOT / package)):5.1f} nodes per line"
        )
    files = sources(*paths)
    print(f"{'these files':<11} {nodes_per_line(files):5.1f} nodes per line")
    for kind, found in findings(files).items():
        print(f"{len(found):4} {kind}")
        if paths or len(found) <= 10:
            print("".join(f"       {text}\n" for text in found), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
