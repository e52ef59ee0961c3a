import json
from pathlib import Path

import numpy as np
import pytest
from builders import conv_net
from click.testing import CliRunner
from html_pages import HOSTILE, Page, large_report, layer
from hypothesis import given
from hypothesis import strategies as st
from slim_nets import images, residual_net

import onnxdrp
from onnxdrp.cli import cli
from onnxdrp.details import mask_picture
from onnxdrp.errors import OptionError
from onnxdrp.evaluation import Accuracy
from onnxdrp.geometry import WeightGeometry
from onnxdrp.html import to_html
from onnxdrp.html.advice import advice
from onnxdrp.html.charts import Mark, Series, columns, lines, ticks
from onnxdrp.html.markup import element
from onnxdrp.html.words import amount, change, number, of_bytes
from onnxdrp.model import Model
from onnxdrp.observers import Histogram
from onnxdrp.quantization import Range
from onnxdrp.report import load_report


@pytest.fixture(scope="module")
def data():
    x = np.random.default_rng(0).standard_normal((20, 3, 8, 8)).astype(np.float32)
    return {"x": x, "y": np.arange(20) % 10}


@pytest.fixture(scope="module")
def report(data):
    return onnxdrp.optimize(Model.from_proto(conv_net()), data, sparsity=0.5)


def renamed(found, to):
    """The JSON with all names of files, layers, tensors and all words of warnings replaced."""
    ranges, fits = found["ranges"], {}
    for record in found["passes"]:
        record["stats"]["skipped"] = {to: to}
        record["options"][to] = to
        record["operators"][to] = 1
        fits = record["stats"].get("layers", fits) if record["name"] == "refit-weights" else fits
    fits[to] = next(iter(fits.values()))
    for row in found["layers"]:
        row |= dict.fromkeys(("name", "op", "weight", "tensor", "why_not", "why_float"), to)
        row |= {"input_shape": [to], "precision": [to]}
    ranges["tensors"][to] = ranges["tensors"].pop("x") | {"dtype": to}
    found["masks"] = {to: found["masks"]["conv2.weight"]}
    for row in found["graph"]["nodes"]:
        row |= {"name": f"{to}/{to}"} | ({"op": to} if "op" in row else {})
    found["model"]["before"]["inputs"] = {to: {"shape": [to], "dtype": to}}
    return found | {
        "input": to,
        "output": to,
        "warnings": [to],
        "recipe": to,
        "layer_errors": {"samples": 8, "verdict": to},
        "versions": {to: to},
    }


def test_a_report_has_the_figures_of_its_layers_ranges_and_masks(report):
    found = json.loads(report.to_json())
    assert [row["name"] for row in found["layers"]] == ["conv1", "conv2", "fc"]
    assert sum(row["mac_before"] for row in found["layers"]) == found["baseline_mac"]
    assert sum(row["mac_after"] for row in found["layers"]) == found["current_mac"]
    for row in found["layers"]:
        assert row["precision"] == ["uint8", "int8"]
        assert 10 < row["sqnr_db"] < 60
    for row in found["layers"][:2]:  # the outputs of the model are not quantized
        assert row["range"][0] < row["range"][1]
    assert found["layers"][1]["sparsity"] == pytest.approx(0.5, abs=0.02)
    assert found["layers"][0]["why_not"].startswith("first layer")
    tensors = found["ranges"]["tensors"]
    assert list(tensors) == list(report.ranges.tensors)
    for row in tensors.values():
        assert sum(row["histogram"]) == row["count"]
        assert row["dtype"] == "uint8"
        assert 255 * row["scale"] == pytest.approx(row["high"] - min(row["low"], 0), rel=1e-3)
    assert found["masks"].keys() == {"conv2.weight"}
    assert found["model"]["before"]["inputs"]["x"]["shape"] == ["N", 3, 8, 8]
    assert found["model"]["after"]["nodes"] == len(report.model.nodes())
    assert found["layer_errors"]["samples"] == 4  # all that were held back
    assert "layer_errors" not in report.table()


def test_without_data_there_are_no_errors_of_layers():
    found = onnxdrp.prune(Model.from_proto(conv_net()), sparsity=0.5).as_dict()
    assert found["layers"]
    assert all("sqnr_db" not in row and "range" not in row for row in found["layers"])
    assert found["layers"][0]["precision"] == ["float32", "float32"]
    assert found.keys() & {"ranges", "layer_errors"} == set()
    assert Page(to_html(found)).sections == [
        "overview", "warnings", "passes", "layers", "graph", "masks", "again",
    ]  # fmt: skip


def test_figures_of_layers_are_of_the_models_as_the_run_left_them(data):
    first, second = (onnxdrp.quantize(Model.from_proto(conv_net()), data, seed=3) for _ in range(2))
    assert first.describe is not None  # nobody has asked yet
    name = next(iter(first.model.weights()))
    first.model.set_weight(name, np.zeros_like(first.model.weight(name)))
    assert first.as_dict()["layers"] == second.as_dict()["layers"]
    assert first.describe is None  # and what it held is let go
    assert first.details is first.details


def test_data_that_is_gone_is_no_reason_to_have_no_page(data, tmp_path):
    path = tmp_path / "images.npz"
    np.savez(path, **data)
    report = onnxdrp.quantize(Model.from_proto(conv_net()), path)
    path.unlink()
    found = report.as_dict()
    assert "images.npz" in found["layer_errors"]["why_not"]
    assert all("sqnr_db" not in row for row in found["layers"])
    assert "images.npz" in to_html(found)


def test_layers_that_lost_channels_say_what_they_were():
    found = onnxdrp.slim(residual_net(), calib=images(), ratio=0.4, multiple=1).as_dict()
    dense = onnxdrp.info(residual_net()).as_dict()["layers"]
    assert [r["mac_before"] for r in found["layers"]] == [r["baseline_mac"] for r in dense]
    assert sum(r["mac_after"] for r in found["layers"]) < 0.7 * sum(
        r["mac_before"] for r in found["layers"]
    )
    assert "widths" in Page(to_html(found)).sections
    errors = [row["sqnr_db"] for row in found["layers"]]  # of the channels that are left
    assert errors[0] == "inf"  # nothing changed before the first removal
    assert all(5 < e < 60 for e in errors if e != "inf")
    assert errors.count("inf") < len(errors) - 1
    assert "channels that are left" in to_html(found)


def test_lists_of_numbers_take_one_line_in_the_json(report):
    text = report.to_json()
    assert json.loads(text) == json.loads(
        json.dumps(report.as_dict(), default=lambda v: v.tolist())
    )
    assert '"input_shape": ["N", 3, 8, 8]' not in text  # only numbers are drawn together
    assert '"nodes": [8, 8]' in text


def test_the_page_needs_nothing_from_outside(report, tmp_path):
    path = report.to_html(tmp_path / "r.html")
    page = path.read_text()
    tree = Page(page)
    assert tree.all("link") == []
    assert all(image["src"].startswith("data:image/png;base64,") for image in tree.all("img"))
    assert all(link["href"].startswith("#") for link in tree.all("a"))
    assert "http" not in page.replace("http-equiv", "").replace("Content-Security-Policy", "")
    policy = next(m["content"] for m in tree.all("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert page == to_html(json.loads(report.to_json()))  # made of the JSON alone


def test_a_reader_by_ear_or_keyboard_finds_the_way(report):
    tree = Page(to_html(report.as_dict()))
    ids = [attributes["id"] for _, attributes in tree.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for link in tree.all("a"):
        assert link["href"][1:] in ids
    for name in [a["aria-labelledby"] for _, a in tree.elements if "aria-labelledby" in a]:
        assert name in ids
    assert len(tree.all("caption")) == len(tree.all("table"))
    assert all(head["scope"] in ("col", "row") for head in tree.all("th"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in tree.all("svg"))
    assert all(image["alt"] for image in tree.all("img"))
    assert tree.all("html")[0]["lang"] == "en"
    assert len(tree.all("main")) == len(tree.all("h1")) == 1


def test_hostile_names_are_text(report):
    text = report.to_json()
    plain = Page(to_html(renamed(json.loads(text), "plain")))
    hostile = Page(to_html(renamed(json.loads(text), HOSTILE)))
    names = [name for name, _ in plain.elements if name != "wbr"]
    assert [name for name, _ in hostile.elements if name != "wbr"] == names  # no element more
    assert names.count("script") == 1
    for (_, a), (_, b) in zip(plain.elements, hostile.elements, strict=False):
        assert not any(key.startswith("on") for key in (*a, *b))
    told = [text for texts in hostile.text.values() for text in texts]
    assert sum(HOSTILE in text for text in told) > 10
    assert hostile.text["script"] == plain.text["script"]
    assert HOSTILE in hostile.all("img")[0]["alt"]


@given(st.text())
def test_text_is_never_markup(text):
    tree = Page(str(element("p", text, title=text)))
    assert [name for name, _ in tree.elements] == ["p"]
    shown = "".join(tree.text.get("p", []))
    assert len(shown) == len(text)
    assert all(a == b or b == "\ufffd" or a == "\r" for a, b in zip(text, shown, strict=True))


def test_attributes_have_names_of_our_own():
    with pytest.raises(ValueError, match="no attribute"):
        element("p", **{"x onload": "1"})


def test_sections_without_figures_are_absent():
    tree = Page(to_html({"seconds": 1.0, "passes": [], "warnings": [], "layers": [], "masks": {}}))
    assert tree.sections == ["overview"]
    with pytest.raises(OptionError, match="no figures"):
        to_html({"what": 1})
    with pytest.raises(OptionError, match="no table"):
        to_html([1])


def drawn(report):
    """What the script is told."""
    views = [a["data-graph"] for _, a in Page(to_html(report)).elements if "data-graph" in a]
    return json.loads(views[0])


def test_the_graph_says_with_which_layer_a_node_is_computed(report):
    found = json.loads(report.to_json())
    nodes, links = found["graph"]["nodes"], found["graph"]["links"]
    names = [node["name"] for node in nodes]
    assert names[0] == "x"
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.get("op") for node in nodes}
    assert [node["layer"] for node in nodes if "layer" in node] == [1, 2, 3]
    pruned = onnxdrp.prune(Model.from_proto(conv_net()), sparsity=0.5).as_dict()["graph"]["nodes"]
    told = [(node["op"], node["layer"]) for node in pruned if "layer" in node]
    assert [pair for pair in told if pair[0] == "Relu"] == [("Relu", 1), ("Relu", 2)]
    assert len(told) == 5
    rows = {row["name"]: row for row in found["layers"]}
    for node in nodes:
        if node["name"] in rows:
            row = rows[node["name"]]
            assert node["zeros"] / node["weights"] == pytest.approx(row["sparsity"])
            assert node["precision"] == "8 bit"
    assert all(a < b for a, b in links)
    reached = {0}
    for a, b in links:
        reached |= {b} if a in reached else set()
    assert reached == set(range(len(nodes)))  # everything hangs on the input


def test_a_scope_says_what_its_nodes_come_to():
    items = drawn(large_report(40))["items"]
    scope = next(item for item in items if item["name"] == "stage1")
    assert scope["count"] == 20
    assert scope["said"]["sparsity"][1] == "45.0 % zeros"
    assert scope["said"]["sqnr"][1] == "39.0 dB"  # the worst of 10 to 19
    assert scope["said"]["precision"][1] == "8 bit"
    assert sum(not item.get("parts") for item in items) == 81
    assert all(item["parent"] < i for i, item in enumerate(items))


@given(st.lists(st.text("ab/", max_size=12), min_size=1, max_size=300))
def test_scopes_hold_every_node_once_and_few_parts_each(names):
    nodes = [{"name": name, "op": "Relu"} for name in names]
    items = drawn({"graph": {"nodes": nodes, "links": []}})["items"]
    assert sorted(item["name"] for item in items if not item.get("parts")) == sorted(names)
    parts = [[i["parent"] for i in items].count(scope) for scope in range(-1, len(items))]
    assert max(parts) <= 60
    assert parts[1:] == [item.get("parts", 0) for item in items]
    assert 1 not in parts[1:]  # of one thing alone the thing is shown


def test_a_graph_that_cannot_be_drawn_says_why():
    assert "too many" in to_html({"graph": {"why_not": "30,000 nodes are too many"}})


def test_a_large_model_stays_small():
    page = to_html(large_report(500))
    assert len(page.encode()) < 3e6
    tree = Page(page)
    assert len(tree.all("img")) == 500
    assert len([row for row in tree.all("tr") if row.get("id", "").startswith("layer-")]) == 500


def test_figures_of_other_commands_make_pages(data):
    model = Model.from_proto(conv_net())
    small = onnxdrp.quantize(model.clone(), data).model
    info = onnxdrp.info(small).as_dict()
    assert Page(to_html(info)).sections == ["overview", "layers"]
    planned = onnxdrp.explain(model.clone()).as_dict()
    assert Page(to_html(planned)).sections == ["plan"]
    units = onnxdrp.sensitivity(model.clone(), data, samples=4)
    for found in (units.sensitivity.as_dict(), units.as_dict()):
        assert "sensitivity" in Page(to_html(found)).sections


def test_a_comparison_shows_the_worst_first_and_the_jump():
    rows = [
        {"name": f"n{i}", "op": "Conv", "tensor": f"t{i}", "sqnr_db": db, "cosine": 1.0,
         "max_abs_error": error}
        for i, (db, error) in enumerate([(None, 0.0), (27.0, 0.1), (8.5, 0.5), (None, 0.5)])
    ]  # fmt: skip
    found = {"sqnr_db": 8.5, "max_abs_error": 0.5, "cosine": 0.9, "top1_agreement": 0.75,
             "outputs": {"y": rows[2]}, "layers": rows, "verdict": "it falls here",
             "first_jump": {"name": "n2", "tensor": "t2"},
             "input": "a/float.onnx", "output": "b/int8.onnx"}  # fmt: skip
    tree = Page(to_html(found))
    assert tree.sections == ["overview", "compared"]
    assert tree.text["h1"] == ["int8.onnx against float.onnx"]
    places = [row["id"] for row in tree.all("tr") if "compared-" in row.get("id", "")]
    assert places == ["compared-4", "compared-3", "compared-2", "compared-1"]  # the last is exact
    bars = [a for a in tree.all("rect") if a["class"] in ("bar", "bar jump", "behind")]
    assert [bar["class"] for bar in bars] == ["behind", "bar", "bar jump", "behind"]
    heights = [float(bar["height"]) for bar in bars]
    assert heights[0] > heights[1] > heights[2] > heights[3] == 0
    assert heights[1] / heights[2] == pytest.approx(27 / 8.5, rel=0.01)
    assert "It falls here." in tree.text["p"]
    assert "jump" in tree.text["text"]
    del found["verdict"], found["first_jump"]
    assert "compared" in Page(to_html(found | {"layers": []})).sections


def test_a_comparison_of_models_makes_a_page(data):
    model = Model.from_proto(conv_net())
    small = onnxdrp.quantize(model.clone(), data).model
    compared = onnxdrp.compare(model, small, data, layers=True).as_dict()
    page = to_html(compared)
    assert f"{compared['layers'][0]['sqnr_db']:.1f} dB" in page
    assert compared["verdict"][1:] in page.replace("&#x27;", "'")
    assert "float.onnx" not in page


def test_accuracy_shows_the_worst_classes_and_what_they_are_taken_for():
    labels = np.array([0] * 4 + [1] * 4 + [2] * 4)
    given = np.array([0, 0, 0, 0, 2, 2, 1, 0, 2, 2, 2, 1])
    found = Accuracy(labels == given, None, labels, given).as_dict()
    assert [(c["class"], c["top1"]) for c in found["classes"]] == [(0, 100), (1, 25), (2, 75)]
    assert found["confused"] == [
        {"label": a, "taken_for": b, "samples": n} for a, b, n in ((1, 2, 2), (1, 0, 1), (2, 1, 1))
    ]
    tree = Page(to_html(found))
    assert tree.sections == ["overview", "classes"]
    rows = [row["id"] for row in tree.all("tr") if row.get("id")]
    assert rows == ["class-1", "class-2", "class-0"]
    shares = [cell["style"] for cell in tree.all("td") if "style" in cell]
    assert shares == [f"--share:{n}%" for n in (100, 25, 25, 50, 25, 75)]  # row by row
    assert "66.67 %" in tree.text["p"]
    found["confused"] = found["confused"][:1]  # a square with holes would be taken for a full one
    assert [t["class"] for t in Page(to_html(found)).all("table")] == ["sortable", "sortable"]


def test_detections_are_shown_by_class():
    rows = [{"class": 7, "objects": 3, "map_50": 0.5, "map_5095": 0.25},
            {"class": 2, "name": HOSTILE, "objects": 1, "map_50": 0.1, "map_5095": 0}]  # fmt: skip
    found = {"map_50": 0.3, "map_5095": 0.125, "map_5095_interval": [0.1, 0.2], "samples": 4,
             "objects": 4, "detections": 40, "classes": rows}  # fmt: skip
    tree = Page(to_html(found))
    assert tree.sections == ["overview", "classes"]
    assert [row["id"] for row in tree.all("tr") if row.get("id")] == ["class-2", "class-7"]
    assert {"0.1250", "95 % interval 0.1000 to 0.2000, 4 samples"} <= set(tree.text["p"])


def test_info_shows_modelled_cycles_and_what_is_not_counted():
    model = Model.from_proto(conv_net())
    pruned = onnxdrp.prune(model, sparsity=0.5, pattern="block").model
    found = onnxdrp.info(pruned).as_dict()
    assert found["total"]["cycles_b"] < found["total"]["baseline_mac"]
    tree = Page(to_html(found))
    told = " ".join(tree.text["h3"])
    assert "Modelled cycles, reading B" in told
    assert "Modelled cycles, in millions" in tree.text["strong"]
    found["total"]["uncounted"] = {"odd": "its shape is unknown"}
    assert "warnings" in Page(to_html(found)).sections


def test_the_demo_shows_its_stages(report):
    row = {
        "top1": 94.6,
        "top1_interval": (93.0, 95.8),
        "sparsity": 0.5,
        "current_mac": 9,
        "bytes": 9,
    }
    demo = {"models": {"float": row, "all of it": row}, "report": report.as_dict(), "folder": "x"}
    sections = Page(to_html(demo)).sections
    assert sections[:3] == ["overview", "warnings", "models"]
    assert {"passes", "layers"} <= set(sections)


def test_figures_of_channels_make_pages():
    model, data = residual_net(), images()
    curves = onnxdrp.sensitivity(model.clone(), data, of="channels", shares=(0.25, 0.5), samples=20)
    for found in (curves.sensitivity.as_dict(), curves.as_dict()):
        page = to_html(found)
        assert "channels" in Page(page).sections
        assert page.count("<polyline") == len(curves.sensitivity.curves) >= 2
    front = onnxdrp.pareto(model.clone(), data, points=4, multiple=1)
    for found in (front.front.as_dict(), front.as_dict()):
        tree = Page(to_html(found))
        assert "front" in tree.sections
        assert len(tree.all("circle")) == len(front.front.points) > 1


def test_searches_show_what_they_tried(data):
    found = onnxdrp.prune(
        Model.from_proto(conv_net()), calib=data, max_drop=50.0, recover="none"
    ).as_dict()
    page = to_html(found)
    assert "searched" in Page(page).sections
    assert page.count('class="interval"') == len(found["curve"]["points"])
    tried = {
        "lost": 0.5,
        "low": 0.1,
        "high": 0.9,
        "channels": 9,
        "recovered": "refit",
        "seconds": 1,
    }
    rounds = [tried | {"number": n, "macs": 80 // n, "accepted": n < 3} for n in (1, 2, 3)]
    search = {"max_drop": 1.0, "what": "top-1 agreement", "samples": 40, "macs": [100, 40],
              "stopped": "nothing more holds", "rounds": rounds}  # fmt: skip
    tree = Page(to_html({"search": search}))
    assert tree.sections == ["searched"]
    drawn = [float(c["cx"]) for c in tree.all("circle")]
    assert (drawn[0] - drawn[1]) / (drawn[1] - drawn[2]) == pytest.approx(40 / 14, rel=0.01)
    assert [c["class"] for c in tree.all("circle")] == ["dot taken", "dot taken", "dot alone"]


def test_columns_are_as_high_as_their_values():
    marks = [Mark(i, float(v), "tip", behind=4.0) for i, v in enumerate((1, 2, 4))]
    bars = [a for a in Page(columns(marks, "l", "x", "y")).all("rect") if a["class"] == "bar"]
    heights = [float(bar["height"]) for bar in bars]
    assert Page(columns(marks, "l", "x", "y", names=["a", "b", "c"])).text["text"][-5:-2] == [
        "a", "b", "c",
    ]  # fmt: skip
    assert heights == pytest.approx([heights[2] / 4, heights[2] / 2, heights[2]], abs=0.2)
    behind = [a for a in Page(columns(marks, "l", "x", "y")).all("rect") if a["class"] == "behind"]
    assert {float(bar["height"]) for bar in behind} == {heights[2]}
    assert heights[2] > 100


def test_lines_go_through_their_marks():
    series = Series([Mark(0, 0.0, "a"), Mark(1, 1.0, "b"), Mark(2, 0.5, "c", 0.4, 0.6)])
    tree = Page(lines([series], "l", "x", "y", limit=(0.5, "limit")))
    dots = [(float(c["cx"]), float(c["cy"])) for c in tree.all("circle")]
    points = [tuple(map(float, p.split(","))) for p in tree.all("polyline")[0]["points"].split()]
    assert dots == points
    (x0, y0), (x1, y1), (x2, y2) = dots
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y2 == pytest.approx((y0 + y1) / 2, abs=0.11)
    limit = next(line for line in tree.all("line") if line["class"] == "limit")
    assert float(limit["y1"]) == y2


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_and_within(low, width):
    found = ticks(low, low + width)
    assert 2 <= len(found) <= 8
    slack = 1e-6 * max(width, abs(low) * 1e-6, 1e-5)
    assert low - slack <= found[0]
    assert found[-1] <= low + width + slack


def test_ranges_show_what_lies_outside():
    tree = Page(to_html(large_report(1)))
    picture = next(svg for svg in tree.all("svg") if svg.get("class") == "histogram")
    assert picture["aria-label"] == "values from 0 to 7.5, range 0 to 6"
    outside = [a for a in tree.all("rect") if a.get("class") == "outside"]
    assert [(float(a["x"]), float(a["width"])) for a in outside] == [(153.6, 38.4)]  # 6 of 7.5


def test_values_that_no_figure_has_are_no_zeros():
    rows = [layer(0, sqnr_db="inf"), layer(1), {"name": "odd", "op": "Conv", "sparsity": None}]
    page = to_html({"layers": rows})
    assert "∞" in page
    assert page.count(": no figure") == page.count(": no error") == 1
    assert "None" not in page


def test_sketches_count_every_value():
    found = Histogram()
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    found.update(values)
    sketch = found.sketch(48)
    assert sum(sketch) == 10_000
    want = np.histogram(values, 48)[0]
    assert np.abs(np.array(sketch) - want).max() <= 0.02 * want.max()
    assert found.outside(Range(-1.0, 1.0)) == pytest.approx(np.mean(np.abs(values) > 1), abs=2e-3)
    assert found.outside(Range(-10.0, 10.0)) == 0.0
    assert Histogram().sketch(48) == []
    assert Histogram().outside(Range(0.0, 1.0)) == 0.0


@pytest.mark.parametrize("sign", [1, -1])
def test_what_was_clipped_to_the_end_of_a_range_lies_inside_of_it(sign):
    found = Histogram()
    values = np.clip(np.linspace(0, 8, 1000, dtype=np.float32), 0, 6)
    found.update(sign * values)
    for end in (6.0, 5.9999999):
        assert found.outside(Range(*sorted((0.0, sign * end)))) == 0.0
    assert found.outside(Range(*sorted((0.0, sign * 5.9)))) == pytest.approx(0.26, abs=0.005)


def test_pictures_of_masks_show_shares():
    keep = np.zeros((4, 64, 1, 1), bool)
    keep[0, :32] = True
    keep[1, 0] = True
    picture = mask_picture(keep, WeightGeometry.conv(keep.shape))
    assert picture == ["f" * 32 + "0" * 32, "f" + "0" * 63, "0" * 64, "0" * 64]
    wide = np.zeros((128, 128), bool)
    wide[:4, :2] = True
    wide[127, 127] = True
    small = mask_picture(wide)
    assert len(small) == 32
    assert {len(line) for line in small} == {64}
    assert small[0] == "f" + "0" * 63
    assert small[-1] == "0" * 63 + "2"  # one of eight
    assert mask_picture(np.zeros((0, 3), bool)) == []


@given(st.integers(1, 200), st.integers(1, 300))
def test_pictures_of_masks_are_small(rows, columns_):
    picture = mask_picture(np.ones((rows, columns_), bool))
    assert 1 <= len(picture) <= 32
    assert {line.strip("f") for line in picture} == {""}
    assert len({len(line) for line in picture}) == 1
    assert len(picture[0]) <= 64


def test_figures_in_words():
    assert [amount(v) for v in (999, 12_345, 105_743_616, 2e9)] == [
        "999", "12.35 thousand", "105.7 million", "2 billion",
    ]  # fmt: skip
    assert [of_bytes(v) for v in (999, 2_794_664)] == ["999 bytes", "2.79 MB"]
    assert [change(2, 1), change(1, 1), change(1, 2), change(0, 1)] == [
        "−50 %", "unchanged", "+100 %", "",
    ]  # fmt: skip
    assert [number(v) for v in (None, 12_345, -0.5, "inf", float("-inf"))] == [
        "", "12,345", "−0.5", "∞", "−∞",
    ]  # fmt: skip


def test_advice_is_given_where_the_warning_has_none():
    told = "prune-blocks: pattern flex-nm gains nothing in 14 of 14 layers if the hardware works as"
    assert "--pattern block" in advice(f"{told} in reading B (...; a model, not a measurement)")
    assert advice("3 outputs have no weight left; lower the rate of these layers") == ""
    assert advice("something else") == ""


@pytest.mark.parametrize(
    ("text", "words"), [(None, "cannot be read"), ("{", "is no JSON"), ("[1]", "no JSON object")]
)
def test_files_that_are_no_report_are_refused(tmp_path, text, words):
    path = tmp_path / "r.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(OptionError, match=words):
        load_report(path)


@pytest.mark.parametrize(
    ("arguments", "sections"),
    [
        (["info", "net.onnx"], {"overview", "layers"}),
        (["compare", "net.onnx", "net.onnx", "--calib", "x.npz", "--layers"], {"compared"}),
        (["evaluate", "net.onnx", "--data", "x.npz"], {"overview", "classes"}),
        (["quantize", "net.onnx", "--explain"], {"plan"}),
    ],
)
def test_commands_without_passes_write_reports_too(
    arguments, sections, data, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Model.from_proto(conv_net()).save("net.onnx")
    np.savez("x.npz", **data)
    for file in ("r.html", "r.json"):
        result = CliRunner().invoke(cli, [*arguments, "--json", "--report", file])
        assert result.exit_code == 0, result.output
    assert json.loads(Path("r.json").read_text()) == json.loads(result.stdout)
    page = Path("r.html").read_text()
    assert page == to_html(load_report("r.json"))
    assert sections <= set(Page(page).sections)
    assert Page(page).text["h1"][0].startswith("net.onnx")
    refused = CliRunner().invoke(cli, [*arguments, "--report", "r.txt"])
    assert (refused.exit_code, "reports are HTML or JSON" in refused.output) == (1, True)
    refused = CliRunner().invoke(cli, [*arguments, "--report", "net.onnx"])
    assert "is the input" in refused.output
