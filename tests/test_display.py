"""Notebooks show what is printed, with every name inert; pictures are bounded and tell no lies."""

import base64
import io
import pickle
import re
from html.parser import HTMLParser
from urllib.parse import urlparse

import numpy as np
import pytest
from builders import conv_net
from PIL import Image
from toy_passes import Nothing

from onnxdrp.channels.candidates import SubnetScore
from onnxdrp.channels.front import Front, NetPoint
from onnxdrp.channels.sensitivity import ChannelSensitivity
from onnxdrp.debugging import Activation, Bisection, Inputs, Trace
from onnxdrp.debugging.bisection import PassFigure, TensorFigure
from onnxdrp.debugging.inputs import Channel, Norm
from onnxdrp.diff import Diff, NodeLine, Rewiring, WeightChange
from onnxdrp.display import Details, Picture, Shown, Table, Tabular, escaped, facts
from onnxdrp.evaluation import Comparison
from onnxdrp.masks import Mask
from onnxdrp.model import Model
from onnxdrp.observers import ErrorStats
from onnxdrp.passes.clean import Clean
from onnxdrp.pictures import heat_map, histogram, runs
from onnxdrp.pipeline import PassManager, PassRecord
from onnxdrp.quantization import QuantParams
from onnxdrp.ranges import Ranges, TensorRange
from onnxdrp.report import Text
from onnxdrp.summary import summarize_layers
from onnxdrp.unit_sensitivity import Sensitivity, UnitSensitivity

HOSTILE = "</td><script>alert('$x$')</script>\"&\x00"


class Page(HTMLParser):
    """Tags, texts by cell, addresses."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self.addresses, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href")]
        assert not [k for k, _ in attrs if k.startswith("on")]
        if tag not in ("img", "meta"):
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def unit(name):
    return UnitSensitivity(
        name, "Conv", (name,), ("x",), "h", 10, 1.0, 20.0, {"y": 20.0}, None, 9.5
    )


def point(name):
    return NetPoint(0, 3.0, 10, 5, {}, {}, {}, name, SubnetScore(None, 3.0))


class Named(Nothing):
    """A pass with a name of one's own."""

    def __init__(self, name):
        object.__setattr__(self, "name", name)

    def options(self):
        return {}


VALUES = np.linspace(-1, 2, 6, dtype=np.float32)
TENSOR = TensorFigure(HOSTILE, "Conv", HOSTILE, 3.0, None, float("inf"))
SHOWN = {
    "ranges": Ranges({HOSTILE: TensorRange(-1.0, 2.0)}),
    "comparison": Comparison(
        {HOSTILE: ErrorStats(20.0, 0.9, 0.1)},
        0.5,
        [("n", "Conv", HOSTILE, ErrorStats(float("inf"), 1.0, 0.0))],
    ),
    "sensitivity": Sensitivity([unit(HOSTILE)]),
    "channel sensitivity": ChannelSensitivity({HOSTILE: {0.5: 0.9}}),
    "record": PassRecord(0, HOSTILE, {}, stats={"skipped": {HOSTILE: HOSTILE}, "rate": 0.5}),
    "front": Front((point("n"),), "sqnr", "macs", 10),
    "diff": Diff(
        HOSTILE,
        HOSTILE,
        (NodeLine(HOSTILE, "Conv", (HOSTILE,), ()),),
        (),
        (Rewiring(NodeLine(HOSTILE, "A", (), ()), NodeLine(HOSTILE, "B", (), ()), {}),),
        (WeightChange(HOSTILE, "changed", ((2,), (2,)), ("f", "f"), (0, 0), (1, 1), 0.5),),
    ),
    "bisection": Bisection(
        *("sqnr", 20.0, (PassFigure(0, HOSTILE, True, 3.0),), PassFigure(0, HOSTILE, True, 3.0)),
        *("", (TENSOR,) * 20, TENSOR),
    ),
    "activation": Activation(HOSTILE, HOSTILE, (0, 1), VALUES, VALUES * np.float32(1.01)),
    "inputs": Inputs(2, (Channel(HOSTILE, 0, *VALUES[:4]),), (Norm(HOSTILE, 3.0, 1.0),)),
    "trace": Trace([Named(HOSTILE)], Model.from_proto(conv_net())),
}
PICTURED = ("activation",)


@pytest.mark.parametrize("name", SHOWN)
def test_what_comes_from_a_model_is_text_and_nothing_else(name):
    text = SHOWN[name]._repr_html_()
    page = Page(text)
    assert not page.open
    assert page.tags.count("script") == 1
    assert "alert('$x$')</script>" not in text
    assert "mathjax_ignore" in text
    assert "\x00" not in text
    assert [a.partition(",")[0] for a in page.addresses] == (
        ["data:image/svg+xml;base64"] if name in PICTURED else []
    )
    if name != "front":
        inert = HOSTILE.replace("\x00", "\ufffd")
        assert any(inert in cell for cell in page.cells)


@pytest.mark.parametrize("name", SHOWN)
def test_the_plain_twin_is_what_is_printed(name):
    shown = SHOWN[name]
    assert repr(shown) == str(shown)
    assert "<table" not in repr(shown)
    if name == "bisection":
        assert str(shown) == str(shown.table(12))
        assert len(shown.table()) > len(str(shown))
    elif name != "record":
        assert str(shown) == str(shown.table())


def test_whatever_is_tabular_has_a_table():
    class Bare(Tabular):
        pass

    with pytest.raises(TypeError, match="table"):
        Bare()


def test_a_bisection_shows_the_lines_around_the_tensor_and_all_of_them_on_demand():
    found = SHOWN["bisection"]
    html = found._repr_html_()
    assert html.count("<details>") == 1
    assert "all 20 tensors" in html
    assert "pass 000" in html


def test_an_activation_draws_both_sides_and_the_range_that_it_is_rounded_to():
    grid = QuantParams(np.float32(0.5), np.uint8(0), "uint8")
    values = np.linspace(-3, 3, 50, dtype=np.float32)
    seen = Activation("t", "insert-qdq", (0,), values, values, values, grid)
    (alt,) = re.findall("alt='([^']*)'", seen._repr_html_())
    assert alt.startswith("float (blue)")
    assert "after insert-qdq (orange)" in alt
    assert alt.endswith("range 0 to 127.5")
    codes = Activation("t", "p", (), np.arange(3), None)
    assert "<img" not in codes._repr_html_()
    half = Activation("t", "p", (), values, None)
    assert "orange" not in half._repr_html_()


def test_a_model_shows_its_ends_and_operators_and_is_one_line_in_a_list():
    model = Model.from_proto(conv_net())
    assert repr([model]).count("\n") == 0
    stored = sum(np.prod(t.shape) for t in model.tensors().values() if t.name in model.weights())
    assert f"8 nodes, {stored:,} stored values in 9 tensors" in repr(model)
    page = Page(model._repr_html_())
    assert page.cells[:4] == ["", "name", "dtype", "shape"]
    assert page.cells[4:8] == ["input", "x", "float32", "[N, 3, 8, 8]"]
    assert ("Conv", "2") in zip(page.cells, page.cells[1:], strict=False)


def test_a_report_shows_its_passes_and_what_they_led_to():
    report = PassManager([Clean()]).run(Model.from_proto(conv_net()))
    report.summary["sparsity"] = 0.25
    page = Page(report._repr_html_())
    head = ["#", "pass", "nodes", "weights changed", "bytes", "seconds"]
    assert page.cells[:8] == [*head, "000", "clean"]
    assert "<p>sparsity: 0.25</p>" in report._repr_html_()
    assert str(report).splitlines()[-1] == "sparsity: 0.25"


def test_text_and_html_of_a_summary_have_the_same_rows_and_the_total_is_the_foot():
    summary = summarize_layers(Model.from_proto(conv_net()))
    html = summary._repr_html_()
    page = Page(html)
    assert [name for name in page.cells if name.startswith("conv")] == ["conv1", "conv2"]
    assert "total" in html.partition("<tfoot>")[2]
    assert str(summary).splitlines()[4].startswith("total")
    assert pickle.loads(pickle.dumps(summary.table())) == summary.table()


def test_columns_of_figures_are_told_from_words():
    html = Table(("a", "b", "c"), [("x", "1,024", "-"), ("1", "-2.5e-3", "inf")]).html()
    assert "<th>a</th><th class='number'>b</th><th class='number'>c</th>" in html
    assert "<tbody><tr><td>x</td><td class='number'>1,024</td>" in html


def test_a_long_table_is_cut_in_html_and_whole_as_text():
    table = Table(("i",), [(i,) for i in range(1234)])
    assert Page(table.html()).cells[-1] == "734 more rows: print() shows all"
    assert len(Page(table.html()).cells) == 502
    assert len(str(table).splitlines()) == 1235


def test_parts_within_parts_stay_parts():
    inner = Shown(Table(("a",), [(1,)]), "", "note")
    outer = Shown("title", inner)
    assert outer == "title\na\n1\n\nnote"
    assert outer._repr_html_().count("<table>") == 1
    assert Text("a < b")._repr_html_().count("<p>a &lt; b</p>") == 1
    assert "<script>" not in Text("words")._repr_html_()
    assert str(Details("more", Table(("a",), [(1,)]))) == "more\na\n1"
    assert [str(part) for part in facts({"x": 1, "t": {"a": 2}})] == [
        "figure  value\nx           1", "t (1)\nname  value\na         2",
    ]  # fmt: skip


def test_entries_with_the_same_figures_have_a_column_each():
    layers = {"a": {"before": 0.123456, "after": 2}, "b": {"before": 0.5, "after": 3}}
    (part,) = facts({"layers": layers})
    assert part.title == "layers (2)"
    assert part.part.head == ("name", "before", "after")
    assert part.part.rows == [("a", "0.1235", 2), ("b", "0.5", 3)]
    for table in ({"a": {"x": 1}, "b": {"y": 1}}, {"a": {"x": 1}, "b": 2}, {"a": {}, "b": {}}):
        (part,) = facts({"layers": table})
        assert part.part.head == ("name", "value")
        assert len(part.part.rows) == 2


def test_a_picture_is_its_words_where_there_are_no_pictures():
    shown = heat_map(Mask(np.eye(4, dtype=bool)))
    assert repr(shown) == str(shown) == "4x4: 4 of 16 kept; dark is kept"


def test_escaped_text_is_xml_whatever_it_was():
    import xml.etree.ElementTree as ET

    text = "".join(map(chr, range(0x300))) + "\ud800\ufffe\U0001f600'\""
    root = ET.fromstring(f"<a b='{escaped(text)}'>{escaped(text)}</a>")
    assert root.text.endswith("\ufffd\ufffd\U0001f600'\"")


def pixels(picture: Picture):
    head, _, data = picture.uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_cells_of_a_mask_are_the_shares_kept():
    keep = np.random.default_rng(0).random((40, 64, 3, 3)) > 0.6
    keep[:, 32:, 1, 1] = False
    keep[:, :32, 0, 0] = True
    found = pixels(heat_map(Mask(keep)))
    columns = np.moveaxis(keep, 1, -1).reshape(40, -1)
    want = columns.reshape(40, -1, 4).mean(-1)
    assert found.shape == (40, 144)
    np.testing.assert_array_equal(found, np.rint(255 * want))
    assert (found[:, :8] == 255).all()
    assert (found[:, 4 * 16 + 8 : 5 * 16] == 0).all()


@pytest.mark.parametrize(
    "shape", [(1,), (7,), (3000,), (1, 1), (600, 5), (2000, 300, 1, 1), (0, 4)]
)
def test_the_picture_of_a_mask_is_bounded_whatever_its_shape(shape):
    mask = Mask(np.arange(np.prod(shape)).reshape(shape) % 3 > 0)
    if not mask.size:
        assert "<img" not in mask._repr_html_()
        return
    picture = heat_map(mask)
    found = pixels(picture)
    assert max(found.shape) <= 256
    assert max(picture.size) <= 512
    assert len(mask._repr_html_()) < 60_000
    np.testing.assert_allclose(found.mean() / 255, mask.count / mask.size, atol=0.03)
    (address,) = Page(mask._repr_html_()).addresses
    assert urlparse(address).scheme == "data"


def test_runs_that_are_pruned_whole_are_told_from_those_in_part():
    keep = np.zeros((4, 64), bool)
    keep[0] = True
    keep[1, :32] = True
    keep[2, 5] = True
    assert runs(Mask(keep)).rows == [("32 along axis 1", "50.0 %", "37.5 %", "12.5 %")]
    assert runs(Mask(np.ones((3, 3), bool))).rows == []


def test_a_histogram_tells_zeros_and_draws_the_rest():
    before = np.linspace(-1, 3, 500)
    after = np.where(np.abs(before) < 1, 0, before)
    picture = histogram(before, after)
    assert picture.text.startswith("before (blue) 0.0% zeros, -1 to 3; after (orange) ")
    assert f"{np.mean(after == 0):.1%} zeros" in picture.text
    svg = base64.b64decode(picture.uri.partition(",")[2]).decode()
    assert ">-1</text>" in svg
    assert ">3</text>" in svg
    fill, line = (part.partition("'")[0] for part in svg.split("<path d='")[1:3])
    assert fill != line
    assert fill.count("V") == line.count("V") == 61
    assert histogram(before, None).text == "before (blue) 0.0% zeros, -1 to 3"
    ranged = histogram(before, after, ("float", "rounded"), ends=(-1.0, 2.0))
    assert "float (blue)" in ranged.text
    assert ranged.text.endswith("; range -1 to 2")
    svg = base64.b64decode(ranged.uri.partition(",")[2]).decode()
    assert "M1.0 4V112M270.0 4V112" in svg  # -1 and 2 of -1 to 3, across 360
    histogram(np.zeros(5), np.zeros(0))
    histogram(np.full(3, np.nan), np.ones(2))
