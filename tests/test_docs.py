"""Every command and snippet of the documents is run, or says why it is not.

The line before a block of ``sh`` or ``python`` says how, in a comment that a reader does not see:

    <!-- run -->                 by this test, in the checkout; `run, exits with 2` where it fails
    <!-- run by FILE -->         by that file, or by FILE::NAME, a name in it
    <!-- never run here: WHY -->

A block of ``python`` with prompts needs no comment: it is a doctest, each page one session. A block
after ``<!-- prints -->`` is all that the command before it prints.
"""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/*.md", "csrc/simulator/*/README.md")
    for path in ROOT.glob(pattern)
)
BLOCK = re.compile(
    r"^(?:<!-- (?P<how>[^\n]+?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    page: Path
    line: int
    how: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = (ROOT / page).read_text()
    return [
        Block(
            page,
            text.count("\n", 0, m.start()) + 1,
            m["how"] or "",
            m["language"],
            m["text"],
        )
        for m in BLOCK.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks(page)]


def is_doctest(block: Block) -> bool:
    return block.language == "python" and ">>> " in block.text


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_says_how_it_is_run(block: Block) -> None:
    if block.language in ("", "text") or is_doctest(block):
        return
    if match := re.fullmatch(r"run by ([\w./-]+)(?:::(\w+))?", block.how):
        file, name = match.groups()
        assert (ROOT / file).is_file(), f"{block}: there is no {file}"
        assert not name or name in (ROOT / file).read_text(), f"{block}: {file} has no {name}"
        return
    assert re.fullmatch(r"run(, exits with \d+)?|never run here: .+", block.how), (
        f"{block}: nothing says how this is run: {block.how!r}"
    )


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_session_gives_what_the_page_shows(page: Path) -> None:
    sessions = [block for block in blocks(page) if is_doctest(block)]
    text = "\n".join(block.text for block in sessions)
    test = doctest.DocTestParser().get_doctest(text, {}, str(page), str(page), 0)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner = doctest.DocTestRunner(optionflags=flags)
    report: list[str] = []
    runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


RUN = [
    (block, BLOCKS[i + 1] if i + 1 < len(BLOCKS) else None)
    for i, block in enumerate(BLOCKS)
    if re.match(r"run(,|$)", block.how)
]


@pytest.mark.parametrize(("block", "after"), RUN, ids=[str(block) for block, _ in RUN])
def test_a_command_does_what_the_page_shows(block: Block, after: Block | None) -> None:
    command = ["bash", "-e"] if block.language == "sh" else [sys.executable]
    ran = subprocess.run(
        command,
        input=block.text,
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        },
        capture_output=True,
        text=True,
    )
    expected = int((re.search(r"\d+", block.how) or ["0"])[0])
    assert ran.returncode == expected, f"{block}: {ran.stdout}{ran.stderr}"
    if after and after.page == block.page and after.how == "prints":
        assert ran.stdout == after.text, str(block)


LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for target in LINK.findall(text):
        if not target.startswith(("http://", "https://")):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"
