"""Completion in the shells themselves, as docs/terminal.md sets it up."""

import os
import pty
import select
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without settings, in which `onnxdrp` is a command."""
    script = tmp_path / "bin" / "onnxdrp"
    script.parent.mkdir()
    code = "from onnxdrp.cli import main; main(prog_name='onnxdrp')"
    command = f'exec {shlex.quote(sys.executable)} -c "{code}" "$@"'
    script.write_text(f"#!/bin/sh\n{command}\n", encoding="utf-8")
    script.chmod(0o755)
    (tmp_path / "network.onnx").touch()
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def needs(shell: str) -> str:
    return shutil.which(shell) or pytest.skip(f"{shell} is not installed")


def line_for(shell: str) -> str:
    """What the documentation says to put into the settings of a shell."""
    page = (ROOT / "docs" / "terminal.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith(f"| {shell} |"))
    return row.split("`")[-2].replace("\\|", "|")


def run(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.split()


def test_bash_completes_commands_options_targets_and_files(home: Path) -> None:
    bash = needs("bash")

    def completed(*words: str) -> list[str]:
        typed = f"COMP_WORDS=({' '.join(words)}) COMP_CWORD={len(words) - 1}"
        show = '_onnxdrp_completion onnxdrp; echo "${COMPREPLY[@]}"'
        return run(bash, "--norc", "-c", f"{line_for('bash')}\n{typed}\n{show}")

    assert completed("onnxdrp", "opt") == ["optimize"]
    assert completed("onnxdrp", "quantize", "--target", "drp") == ["drp-ai3"]


def test_fish_completes_commands_options_targets_and_files(home: Path) -> None:
    fish = needs("fish")
    settings = home / ".config" / "fish" / "completions"
    settings.mkdir(parents=True)
    (settings / "onnxdrp.fish").write_text(line_for("fish"), encoding="utf-8")

    def completed(typed: str) -> list[str]:
        return run(fish, "-c", f"complete -C {shlex.quote(typed)}")

    assert completed("onnxdrp opt")[0] == "optimize"
    assert completed("onnxdrp prune --distill-")[0] == "--distill-minutes"
    assert completed("onnxdrp quantize --target drp") == ["drp-ai3"]
    assert completed("onnxdrp info net") == ["network.onnx"]


def test_zsh_completes_commands_options_targets_and_files(home: Path) -> None:
    zsh = needs("zsh")
    settings = f"autoload -Uz compinit; compinit -u\n{line_for('zsh')}\nPROMPT='ready> '\n"
    (home / ".zshrc").write_text(settings, encoding="utf-8")
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="dumb", ZDOTDIR=str(home))
        os.execv(zsh, [zsh, "-d", "-i"])  # a shell is what is tested

    def shown(text: str) -> None:
        """Wait until the terminal has shown it."""
        seen, late = b"", time.monotonic() + 60
        while text.encode() not in seen:
            assert select.select([terminal], [], [], late - time.monotonic())[0], seen
            seen += os.read(terminal, 1 << 16)

    try:
        shown("ready> ")
        for typed, whole in (
            ("onnxdrp opt", "imize"),
            ("onnxdrp prune --distill-", "minutes"),
            ("onnxdrp quantize --target drp", "-ai3"),
            ("onnxdrp info net", "work.onnx"),
        ):
            os.write(terminal, f"{typed}\t".encode())
            shown(whole)
            os.write(terminal, b"\x15")  # kills the line
    finally:
        os.close(terminal)  # which ends the shell
        os.waitpid(pid, 0)
