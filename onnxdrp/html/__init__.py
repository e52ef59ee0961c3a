"""A report as one HTML page, made from its JSON: `to_html(json.loads(text))`.

The page needs nothing from the network, and shows what the JSON has: a section without figures is
not there. Its tables sort and filter by a script of its own; without scripts it reads the same.
"""

from onnxdrp.html.page import save_html, to_html

__all__ = ["save_html", "to_html"]
