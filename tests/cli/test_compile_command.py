"""`ramet compile` loads a file that is not its own: what goes wrong there is told in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet.cli.main import main

PROGRAM = """
import ramet as sgl

@sgl.function
def greet(s):
    s += "Hi" + sgl.gen("x", max_tokens=4)

sgl.set_default_backend(sgl.RuntimeEndpoint("http://127.0.0.1:9"))
"""


def compiled(path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    path.write_text(text)
    status = main(["compile", f"{path}:greet"])
    return status, *capsys.readouterr()


def test_a_program_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = compiled(tmp_path / "shown_program.py", PROGRAM, capsys)
    assert status == 0 and "greet" in out


def test_a_file_that_runs_its_program_says_where_to_put_that(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = compiled(tmp_path / "running_program.py", PROGRAM + "greet.run()\n", capsys)
    assert status == 1
    assert "runs something while it is loaded" in err and '`if __name__ == "__main__":`' in err
