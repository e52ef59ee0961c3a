"""Draws docs/img/optimize.svg: `onnxdrp optimize` at work, as a terminal of 100 columns shows it.

    python docs/terminal_picture.py [OUT.svg]

The bundled model is really optimized, on the bundled images, in a pseudo-terminal; all text is what
came from there: the command, one moment of a line of progress, and what stands there at the end.
Columns and rows of the terminal are fixed, times are those of the machine.
"""

import fcntl
import os
import pty
import re
import struct
import sys
import tempfile
import termios
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

from onnxdrp import demo

COLUMNS = 100
COMMAND = (
    "onnxdrp optimize modA.onnx -o small.onnx --calib images --mean 0.219 --std 0.3318 "
    "--target drp-ai3 --sparsity 0.7"
)
SHOWN = "refit-weights"  # the pass whose progress is in the picture
# rich's own format, but for the fonts that it would fetch from the network
FORMAT = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font-family: monospace; font-size: {char_height}px; line-height: {line_height}px;
}}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}"
height="{terminal_height}"/></clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def run(folder: Path) -> str:
    """All that the command writes to a terminal, escape sequences and all."""
    (folder / "modA.onnx").symlink_to(demo.MODEL)
    (folder / "images").symlink_to(demo.CALIBRATE_IMAGES)
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
        os.environ.pop("NO_COLOR", None)
        arguments = COMMAND.split()[1:]
        os.execv(sys.executable, [sys.executable, "-m", "onnxdrp", *arguments])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    parts = []
    try:
        while part := os.read(terminal, 1 << 16):
            parts.append(part)
    except OSError:  # how Linux says that the other end is closed
        pass
    if os.waitpid(process, 0)[1]:
        raise SystemExit(b"".join(parts).decode())
    return b"".join(parts).decode().replace("\r\n", "\n")


def picture(written: str) -> str:
    """The command, a moment of its progress and its result, as SVG."""
    frames = [line for line in re.split(r"\r|\n|\x1b\[2K", written) if f"] {SHOWN}" in line]
    moments = [frame for frame in frames if " left" in frame]
    result = re.split(r"\x1b\[\?25h(?:\r|\n|\x1b\[1A|\x1b\[2K)*", written)[-1]
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True)
    console.print(Text(f"$ {COMMAND}", style="bold"))
    console.print(Text.from_ansi(moments[len(moments) // 2]), end="\n\n")
    console.print(Text.from_ansi(result))
    return console.export_svg(title="onnxdrp", code_format=FORMAT, unique_id="onnxdrp")


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "img" / "optimize.svg")
    with tempfile.TemporaryDirectory() as folder:
        out.write_text(picture(run(Path(folder))), encoding="utf-8")
    print(f"{out}: {out.stat().st_size:,} bytes")
