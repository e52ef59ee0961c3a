"""`python -m onnxdrp`: the command line."""

from onnxdrp.cli import main

main()
