"""What a terminal is shown, and what is not: width, colours, --quiet, -v, --json, completion."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np
import pytest
from builders import conv_net
from click.shell_completion import BashComplete
from click.testing import CliRunner

from onnxdrp.cli import cli
from onnxdrp.terminal import Line

ROOT = Path(__file__).parents[1]


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """A small classifier; calib.npz beside it."""
    path = tmp_path / "net.onnx"
    path.write_bytes(conv_net(batch="N").SerializeToString())
    x = np.random.default_rng(0).standard_normal((12, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "calib.npz", x=x, y=np.arange(12) % 10)
    return path


def on_terminal(*arguments: object, columns: int, **environment: str) -> tuple[str, str]:
    """(standard output, standard error) of a command that sees a terminal of so many columns."""
    ends = pty.openpty(), pty.openpty()
    for _, inner in ends:
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    settings = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    run = subprocess.Popen(
        [sys.executable, "-m", "onnxdrp", *map(str, arguments)],
        stdin=subprocess.DEVNULL, stdout=ends[0][1], stderr=ends[1][1],
        cwd=ROOT, env=settings | {"TERM": "xterm-256color"} | environment,
    )  # fmt: skip
    for _, inner in ends:
        os.close(inner)
    with ThreadPoolExecutor(2) as pool:  # both at once: a terminal that nobody reads is soon full
        out, err = pool.map(_read, (outer for outer, _ in ends))
    assert run.wait() == 0, err
    return out, err


def _read(terminal: int) -> str:
    parts = []
    try:
        while part := os.read(terminal, 1 << 16):
            parts.append(part)
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(terminal)
    return b"".join(parts).decode().replace("\r\n", "\n")


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_tables_fit_the_terminal_and_heads_are_bold(net: Path) -> None:
    out, _ = on_terminal("info", net, columns=80)
    table = plain(out).split("\n\n")[0]
    assert "\x1b[1m" in out
    assert max(map(len, table.split("\n"))) <= 80
    assert "too narrow for: cycles B" in table
    assert "Baseline" in table


def test_no_color_and_dumb_terminals_get_no_escapes(net: Path) -> None:
    assert "\x1b" not in on_terminal("info", net, columns=80, NO_COLOR="1")[0]
    calib = ("--calib", net.parent / "calib.npz")
    out, err = on_terminal("compare", net, net, *calib, columns=80, TERM="dumb")
    assert "\x1b" not in out + err
    assert "SQNR" in out


def test_progress_goes_to_standard_error_and_json_is_alone_on_standard_output(net: Path) -> None:
    calib = ("--calib", net.parent / "calib.npz")
    output = net.parent / "out.onnx"
    out, err = on_terminal("quantize", net, "-o", output, *calib, "--json", columns=100)
    assert json.loads(out)["output"] == str(output)
    for what in ("calibrate", "insert-qdq", "measure"):
        assert re.search(rf"(?m)\b{what} ", plain(err)), what
    assert re.search(r"\d/s, 0:00:\d\d left", plain(err))
    _, err = on_terminal("evaluate", net, "--data", net.parent / "calib.npz", columns=100)
    assert "evaluate" in err
    assert "12/12" in err


def test_quiet_leaves_files_and_nothing_else(net: Path) -> None:
    output = net.parent / "out.onnx"
    command = ["prune", str(net), "-o", str(output), "--sparsity", "0.5"]
    for arguments in ([*command, "-q"], ["--quiet", *command]):
        output.unlink(missing_ok=True)
        result = CliRunner().invoke(cli, arguments)
        assert (result.exit_code, result.stdout) == (0, "")
        assert all(line.startswith("warning: ") for line in result.stderr.splitlines())
        assert output.exists()
    assert json.loads(CliRunner().invoke(cli, [*command, "-q", "--json"]).stdout)["passes"]
    assert "conv2" in CliRunner().invoke(cli, ["info", str(net), "-q"]).stdout


def test_quiet_still_warns(net: Path) -> None:
    calib = str(net.parent / "calib.npz")
    command = ["quantize", str(net), "-o", str(net.parent / "out.onnx"), "--calib", calib, "-q"]
    result = CliRunner().invoke(cli, [*command, "--limit", "1"])
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "warning: figures are of the only calibration sample" in result.stderr


def test_quiet_says_once_what_a_target_lacks(net: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "onnxdrp", "quantize", str(net), "-o", str(net.parent / "out.onnx"),
         "--calib", str(net.parent / "calib.npz"), "--target", "drp-ai3", "-q"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout == ""
    lines = re.findall(r"(?m)^(?:warning:|WARNING) (.+)$", run.stderr)
    assert any(line.startswith("target drp-ai3: ") for line in lines)
    assert len(lines) == len(set(lines))


def test_the_pace_is_that_of_the_work_at_hand_however_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("onnxdrp.terminal.time.monotonic", lambda: now[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    line = Line("work")
    try:
        told = []
        for seconds, done, total in ((60, 1, 3), (60, 2, 4), (1, 1, 900), (10, 101, 900)):
            now[0] += seconds
            assert line.show is not None
            line.show(done, total)
            told.append(line._bar.tasks[0].fields["pace"])
    finally:
        line.close()
    assert told == ["0.017/s, 0:02:00 left", "0.017/s, 0:02:00 left", "", "10/s, 0:01:19 left"]


def test_verbose_logs_each_pass_wherever_it_stands(net: Path) -> None:
    command = ["prune", str(net), "-o", str(net.parent / "out.onnx"), "--json"]
    for arguments in ([*command, "-v"], ["-v", *command]):
        run = subprocess.run(
            [sys.executable, "-m", "onnxdrp", *arguments],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "prune-blocks (" in run.stderr
        assert json.loads(run.stdout)


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_help_text_has_an_example_that_parses(name: str) -> None:
    command = cli.commands[name]
    examples = re.findall(r"(?:Example|Then): onnxdrp (.+)", command.help or "")
    assert examples
    for example in examples:
        words = example.split()
        assert words[0] in cli.commands
        cli.commands[words[0]].make_context(words[0], words[1:])
    assert "-q, --quiet" in command.get_help(click.Context(command))


def test_shells_complete_commands_options_and_targets() -> None:
    shell = BashComplete(cli, {}, "onnxdrp", "_ONNXDRP_COMPLETE")

    def completed(words: list[str], begun: str) -> list[str]:
        return [item.value for item in shell.get_completions(words, begun)]

    assert completed([], "opt") == ["optimize"]
    assert "--sparsity-of" in completed(["prune"], "--spars")
    assert completed(["quantize", "--target"], "drp") == ["drp-ai3"]
    assert [i.type for i in shell.get_completions(["quantize", "--target"], "my")] == ["file"]
    assert [i.type for i in shell.get_completions(["info"], "net")] == ["file"]
