"""What is drawn is the graph: folded, cut out, collapsed and coloured as asked, names inert."""

import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from builders import conv_net, make_model, value
from click.testing import CliRunner
from datareaders_fakes import images
from onnx import helper
from quantizing import quantize_model

import onnxdrp
from onnxdrp.boxes import boxes_of
from onnxdrp.cli import cli
from onnxdrp.errors import ModelError, OptionError
from onnxdrp.evaluation import Comparison
from onnxdrp.model import Model
from onnxdrp.observers import ErrorStats
from onnxdrp.scopes import grouped

PAGE = Path(__file__).parents[1] / "docs" / "notebooks.md"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def graphviz():
    pytest.importorskip("pygraphviz", reason="needs the extra draw")


def chain(*names: str) -> Model:
    """One Relu a name, in a row."""
    nodes = [
        helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"], name) for i, name in enumerate(names)
    ]
    ends = [value("t0", [1, 4])], [value(f"t{len(names)}", [1, 4])]
    return Model.from_proto(make_model(nodes, *ends))


def texts(drawing) -> list[str]:
    return [t.text for t in ET.fromstring(drawing.svg).iter(f"{SVG}text")]


def test_each_node_has_a_box_each_tensor_a_link_with_its_shape():
    drawing = onnxdrp.draw(Model.from_proto(conv_net()))
    found = texts(drawing)
    assert "Conv 32×3×3×3" in found
    assert "Gemm 10×32" in found
    assert found.count("N×32×8×8") + found.count("N×32×6×6") == 5
    root = ET.fromstring(drawing.svg)
    assert len(root.findall(f".//{SVG}path")) == 9
    assert len(root.findall(f".//{SVG}g[@class='node']")) == 8
    assert [g.get("class") for g in root.iter(f"{SVG}g")].count("output") == 1
    assert repr(drawing) == "<Drawing of model: 8 of 8 nodes>"
    assert drawing._repr_svg_() == drawing.svg


def test_links_end_at_the_boxes_they_belong_to():
    root = ET.fromstring(onnxdrp.draw(Model.from_proto(conv_net())).svg)
    boxes = {}
    for group in root.iter(f"{SVG}g"):
        rect = group.find(f"{SVG}rect")
        if rect is not None:
            x, y, w, h = (float(rect.get(k)) for k in ("x", "y", "width", "height"))
            boxes[group.find(f"{SVG}title").text.split("\n")[0]] = (x, y, x + w, y + h)
    group = next(
        g for g in root.iter(f"{SVG}g") if (g.findtext(f"{SVG}title") or "").startswith("h1 ")
    )
    numbers = [float(v) for v in re.findall(r"-?\d+\.\d", group.find(f"{SVG}path").get("d"))]
    tip = [float(v) for v in re.findall(r"-?\d+\.\d", group.find(f"{SVG}polygon").get("points"))]
    x0, _, x1, bottom = boxes["node conv1"]
    assert x0 <= numbers[0] <= x1
    assert abs(numbers[1] - bottom) < 1.5
    x0, top, x1, _ = boxes["node relu1"]
    assert x0 <= tip[2] <= x1
    assert abs(tip[3] - top) < 1.5


def test_around_a_node_stands_what_is_so_many_links_away_and_no_more():
    model = chain(*(f"n{i}" for i in range(9)))
    found = boxes_of(model, "n4", 2)
    assert [box.name for box in found.boxes] == ["n2", "n3", "n4", "n5", "n6"]
    assert [box.open for box in found.boxes] == [True, False, False, False, True]
    assert found.boxes[found.around].name == "n4"
    assert [box.name for box in boxes_of(model, "n0", 1).boxes] == ["t0", "n0", "n1"]
    assert [box.name for box in boxes_of(model, "n4", 0).boxes] == ["n4"]
    with pytest.raises(ModelError, match="no node is called 'n44'; near"):
        onnxdrp.draw(model, around="n44")


def test_scopes_are_opened_from_the_largest_as_long_as_there_is_room():
    names = [f"/a/x/{i}" for i in range(6)] + [f"/a/y/{i}" for i in range(3)] + ["/b/c/one"]
    assert grouped(names, 2) == ["/a"] * 9 + ["/b/c/one"]
    assert grouped(names, 3) == ["/a/x"] * 6 + ["/a/y"] * 3 + ["/b/c/one"]
    assert grouped(names, 5) == ["/a/x"] * 6 + names[6:]
    assert grouped(names, 8) == names[:6] + ["/a/y"] * 3 + ["/b/c/one"]
    assert grouped(names, 10) == names
    assert grouped(names, 2, expand=["/a/y"]) == ["/a/x"] * 6 + names[6:]
    assert grouped(names, 99, collapse=["a/x"]) == ["/a/x"] * 6 + names[6:]
    assert grouped([n.strip("/").replace("/", ".") for n in names], 2)[0] == "a"
    with pytest.raises(OptionError, match="no scope '/a/z'; is 'a/y' meant"):
        grouped(names, 9, expand=["/a/z"])


def test_equal_names_and_names_of_scopes_keep_boxes_of_their_own():
    assert grouped(["", "", "/a", "/a/b", "/a/c"], 99) == ["", "", "/a", "/a/b", "/a/c"]
    found = boxes_of(chain("", "", "/a", "/a/b"), most=99)
    assert [len(box.nodes) for box in found.boxes] == [0, 1, 1, 1, 1, 0]


def test_a_closed_scope_is_one_box_with_what_goes_in_and_out():
    model = chain("/a/p", "/b/q", "/b/r", "/a/s")
    found = boxes_of(model, most=99, collapse=["/a", "/b"])
    assert [(box.name, box.kind) for box in found.boxes] == [
        ("t0", "input"), ("/a", "scope"), ("/b", "scope"), ("t4", "output"),
    ]  # fmt: skip
    assert {(k.source, k.target): k.tensors for k in found.links} == {
        (0, 1): ["t0"], (1, 2): ["t1"], (2, 1): ["t3"], (1, 3): ["t4"],
    }  # fmt: skip
    assert "2 nodes: 2 Relu" in texts(onnxdrp.draw(model, collapse=["/a"]))


def test_a_tensor_that_a_scope_reads_twice_is_one_on_its_link():
    nodes = [
        helper.make_node("Relu", ["x"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["l"], "/s/left"),
        helper.make_node("Sigmoid", ["h"], ["r"], "/s/right"),
        helper.make_node("Add", ["l", "r"], ["y"], "/s/sum"),
    ]
    ends = [value("x", [1, 4])], [value("y", [1, 4])]
    found = boxes_of(Model.from_proto(make_model(nodes, *ends)), collapse=["/s"])
    assert [link.tensors for link in found.links] == [["x"], ["h"], ["y"]]


def test_quantized_nodes_are_coloured_and_qdq_is_folded_unless_asked_for():
    made = quantize_model(conv_net())
    total = len(made.model.nodes())
    drawing = onnxdrp.draw(made.model, color="precision")
    assert not [t for t in texts(drawing) if "QuantizeLinear" in t]
    folded = len(made.model.nodes("QuantizeLinear", "DequantizeLinear"))
    assert folded > 8
    assert f"{total - folded} of {total} nodes" in drawing.text
    found = texts(drawing)
    assert "Conv 32×3×3×3" in found
    # all but the pooling, which reads what no Q stands on; the legend names what is there
    assert found.count("8 bit") == total - folded - 1 + 1
    assert found.count("float") == 1 + 1
    assert "4 bit" not in found
    whole = onnxdrp.draw(made.model, qdq=True)
    assert f"{total} of {total} nodes" in whole.text
    assert "QuantizeLinear" in texts(whole)
    floats = texts(onnxdrp.draw(Model.from_proto(conv_net()), color="precision"))
    assert floats.count("float") == 9
    middle = made.model.nodes("DequantizeLinear")[-1].name
    assert boxes_of(made.model, middle, 1).around is not None


def test_sparsity_is_that_of_the_weights_in_the_box():
    model = Model.from_proto(conv_net())
    weight = model.weight("conv2.weight").copy()
    weight[:, :24] = 0
    model.set_weight("conv2.weight", weight)
    drawing = onnxdrp.draw(model, color="sparsity")
    found = texts(drawing)
    assert found.count("75.0 % zeros") == 1
    assert found.count("0.0 % zeros") == 2
    fills = dict(re.findall(r"<title>node (\w+)\n.*?fill='(#\w+)'", drawing.svg, re.DOTALL))
    assert len({fills[name] for name in ("conv1", "conv2", "relu1")}) == 3


def test_sqnr_is_that_of_the_tensor_also_behind_qdq():
    made = quantize_model(conv_net())
    fine, bad = ErrorStats(50.0, 1.0, 0.1), ErrorStats(3.0, 0.7, 0.1)
    comparison = Comparison({"y": bad}, None, [("pool", "GlobalAveragePool", "p", fine)])
    for model in (made.before, made.model):
        found = texts(onnxdrp.draw(model, color="sqnr", comparison=comparison))
        assert found.count("50.0 dB") == 1
        assert found.count("3.0 dB") == 1
    with pytest.raises(OptionError, match="belong together"):
        onnxdrp.draw(model, color="sqnr")
    with pytest.raises(OptionError, match="layers=True"):
        onnxdrp.draw(model, color="sqnr", comparison=Comparison({"y": bad}, None))


def test_a_picture_is_read_where_a_page_takes_its_style_out():
    root = ET.fromstring(onnxdrp.draw(Model.from_proto(conv_net())).svg)
    assert root.get("text-anchor") == "middle"
    assert root.get("font-family")
    assert {e.get("fill") for e in root.iter(f"{SVG}path")} == {"none"}
    assert all(e.get("stroke") for e in root.iter(f"{SVG}path"))
    boxes = [e for g in root.iter(f"{SVG}g") for e in g.findall(f"{SVG}rect")]
    assert len(boxes) == 10
    assert all(e.get("fill") != e.get("stroke") and e.get("stroke") for e in boxes)
    assert root.find(f"{SVG}rect[@class='ground']").get("fill") == "#ffffff"


def test_hostile_names_are_text_in_the_picture():
    name = "</text><script>alert(1)</script>\"'&\\N\x01"
    nodes = [helper.make_node("Relu", ["x"], [name], name), helper.make_node("Relu", [name], ["y"])]
    model = Model.from_proto(make_model(nodes, [value("x", [name, 3])], [value("y", [name, 3])]))
    svg = onnxdrp.draw(model, around=name).svg
    root = ET.fromstring(svg)
    tags = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert tags == {"svg", "title", "style", "rect", "text", "g", "path", "polygon"}
    assert not [k for e in root.iter() for k in e.attrib if k.startswith("on") or "href" in k]
    assert any(name.replace("\x01", "\ufffd") in (t.text or "") for t in root.iter(f"{SVG}title"))
    assert re.findall(r"https?://[^'\"]*", svg) == ["http://www.w3.org/2000/svg"]


def test_thousands_of_nodes_are_drawn_by_their_scopes_and_refused_without_any():
    model = chain(*(f"/s{i // 100}/b{i // 10}/n{i}" for i in range(3000)))
    drawing = onnxdrp.draw(model)
    assert 100 < drawing.svg.count("class='scope'") <= 150
    assert len(drawing.svg) < 300_000
    with pytest.raises(OptionError, match=r"2002 boxes.*draw what is around a node"):
        onnxdrp.draw(chain(*(f"n{i}" for i in range(2000))))


def test_equal_models_give_equal_pictures():
    first, again = (onnxdrp.draw(Model.from_proto(conv_net())).svg for _ in range(2))
    assert first == again


def test_the_command_writes_a_picture(tmp_path):
    path, out = tmp_path / "net.onnx", tmp_path / "net.svg"
    Model.from_proto(conv_net()).save(path)
    args = ["view", str(path), "--around", "conv2", "--hops", "1", "--color", "sparsity"]
    result = CliRunner().invoke(cli, [*args, "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert "around conv2" in result.stderr
    assert out.read_text(encoding="utf-8").startswith("<svg")
    for name, words in (("net.png", "ends in .svg"), ("net.onnx", "is the input")):
        result = CliRunner().invoke(cli, ["view", str(path), "-o", str(tmp_path / name)])
        assert result.exit_code == 1
        assert words in result.stderr
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 1
    assert "--around is for drawings; give -o FILE.svg" in result.stderr


def test_without_a_file_netron_opens_where_it_is_installed(tmp_path, monkeypatch):
    path, calls = tmp_path / "net.onnx", []
    Model.from_proto(conv_net()).save(path)
    monkeypatch.setattr("onnxdrp.viewer.find_spec", lambda name: None)
    result = CliRunner().invoke(cli, ["view", str(path)])
    assert result.exit_code == 1
    assert "pip install netron, or give -o FILE.svg" in result.stderr
    fake = SimpleNamespace(start=calls.append, wait=lambda: calls.append("wait"))
    monkeypatch.setitem(sys.modules, "netron", fake)
    monkeypatch.setattr("onnxdrp.viewer.find_spec", lambda name: object())
    assert CliRunner().invoke(cli, ["view", str(path)]).exit_code == 0
    assert calls == [str(path), "wait"]
    assert CliRunner().invoke(cli, ["view", str(tmp_path / "no.onnx")]).exit_code == 1


def test_without_a_layout_engine_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr("onnxdrp.layout.find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"pip install 'onnxdrp\[draw\]'"):
        onnxdrp.draw(Model.from_proto(conv_net()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hops": -1}, "hops from 0"),
        ({"most": 0}, "boxes from 1"),
        ({"color": "red"}, "'red'"),
    ],
)
def test_options_without_meaning_are_refused(options, words):
    with pytest.raises(OptionError, match=words):
        onnxdrp.draw(Model.from_proto(conv_net()), **options)


def test_only_svg_is_written(tmp_path):
    drawing = onnxdrp.draw(Model.from_proto(conv_net()))
    with pytest.raises(OptionError, match=r"ends in \.svg"):
        drawing.save(tmp_path / "a.png")
    assert drawing.save(tmp_path / "a.svg").read_text(encoding="utf-8") == drawing.svg
    assert np.all([p.name == "a.svg" for p in tmp_path.iterdir()])


def test_the_page_on_notebooks_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    Model.from_proto(conv_net(64)).save("model.onnx")
    images(tmp_path / "images", 4, 8, 8)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 5
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["report"].masks["conv2.weight"].sparsity == 0.5
    assert {p.name for p in tmp_path.glob("*.svg")} == {"conv2.svg", "precision.svg", "error.svg"}
    assert "50.0 % zeros" in (tmp_path / "conv2.svg").read_text(encoding="utf-8")
    assert (tmp_path / "error.svg").read_text(encoding="utf-8").count(" dB</text>") > 3
