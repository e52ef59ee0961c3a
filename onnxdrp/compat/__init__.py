"""Stand-ins for other tools: their words in front, onnxdrp behind."""
