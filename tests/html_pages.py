"""Reading the pages of onnxdrp.html: as a tree, and reports with figures to be found again."""

from html.parser import HTMLParser

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"

_VOID = {"meta", "input", "img", "wbr"}


class Page(HTMLParser):
    """Every element with its attributes; `text` by element name; refuses what does not close."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.elements, self.text, self._open = [], {}, []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.setdefault(self._open[-1] if self._open else "", []).append(data)

    def all(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]

    @property
    def sections(self):
        return [section["id"] for section in self.all("section")]


def layer(i, name=None, **more):
    """A row of a report's layers."""
    return {
        "name": name or f"/stage{i // 10}/block{i % 10}/conv/Conv",
        "op": "Conv",
        "input_shape": [1, 64, 56, 56],
        "output_shape": [1, 64, 56, 56],
        "params": 36_928 + i,
        "sparsity": i % 10 / 10,
        "why_not": "",
        "weight": f"w{i}",
        "mac_before": 1_000_000 * (i + 1),
        "mac_after": 250_000 * (i + 1),
        "precision": ["uint8", "int8"],
        "tensor": f"t{i}",
        "sqnr_db": 40.0 - i / 20,
        "cosine": 0.999,
        "range": [-1.5, 2.25],
        **more,
    }


def graph(layers):
    """A chain of the layers, each with its Relu, in scopes of ten."""
    nodes = [{"name": "x", "kind": "input"}]
    for i in range(layers):
        nodes.append({"name": layer(i)["name"], "op": "Conv", "layer": i + 1, "zeros": i % 10 * 10,
                      "weights": 100, "sqnr_db": 40.0 - i / 20, "precision": "8 bit"})  # fmt: skip
        name = f"/stage{i // 10}/block{i % 10}/act/Relu"
        nodes.append({"name": name, "op": "Relu", "layer": i + 1})
    return {"nodes": nodes, "links": [[i, i + 1] for i in range(len(nodes) - 1)]}


def large_report(layers):
    """The JSON of a run on a model of so many layers, and as many activations and masks."""
    return {
        "input": "large.onnx",
        "sparsity": 0.45,
        "baseline_mac": 2_000_000_000,
        "current_mac": 500_000_000,
        "seconds": 100.0,
        "layers": [layer(i) for i in range(layers)],
        "layer_errors": {"samples": 8, "verdict": "no jump"},
        "ranges": {
            "method": {"name": "mse"},
            "samples": 64,
            "tensors": {
                f"/stage{i // 10}/block{i % 10}/act/Relu_output_0": {
                    "low": 0.0, "high": 6.0, "min": 0.0, "max": 7.5, "count": 10**7,
                    "dtype": "uint8", "scale": 0.0235, "zero_point": 0, "outside": 1.5e-5,
                    "histogram": [10**7 >> j // 2 for j in range(48)],
                }
                for i in range(layers)
            },
        },
        "masks": {
            f"w{i}": {
                "shape": [64, 64, 3, 3],
                "kept": 11_000,
                "picture": [f"{(i * 31 + row * 7) ** 9 % 16**64:064x}" for row in range(32)],
            }
            for i in range(layers)
        },
        "graph": graph(layers),
        "passes": [],
        "warnings": [],
    }  # fmt: skip
