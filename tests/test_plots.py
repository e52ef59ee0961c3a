"""What is drawn is what was measured."""

import sys
from itertools import pairwise

import numpy as np
import pytest
from click.testing import CliRunner
from slim_nets import images, residual_net

from onnxdrp.channels.candidates import SubnetScore
from onnxdrp.channels.front import Front, NetPoint
from onnxdrp.channels.sensitivity import ChannelSensitivity
from onnxdrp.cli import cli
from onnxdrp.errors import ModelError, OptionError
from onnxdrp.plots import channels_figure, check_plot, front_figure, save_plot

pytest.importorskip("matplotlib")

RATES = [0.1, 0.5, 0.9]


def analysis(groups: int, score="agreement", **more) -> ChannelSensitivity:
    """Group i loses more than group i - 1."""
    curves = {
        f"/stage/block.{i}/conv": {r: 1 - r * r * (i + 1) / (groups + 1) for r in RATES}
        for i in range(groups)
    }
    return ChannelSensitivity(curves, score=score, samples=300, model="net.onnx", **more)


def point(number: int, macs: int, score: float, latency: float | None = None) -> NetPoint:
    return NetPoint(
        number, score, macs, 10, {}, {}, {}, "", SubnetScore(None, score), latency=latency
    )


def front(**more) -> Front:
    points = tuple(point(i, 20 * (i + 1), 3.0 * i, 0.4 + 0.1 * i) for i in range(4))
    return Front(**{"points": points, "by": "sqnr", "cost": "macs", "whole": 100, **more})


@pytest.mark.parametrize("groups", [1, 3, 50])
def test_each_group_has_a_line_of_its_scores_and_the_costliest_are_named(groups):
    found = analysis(groups)
    (axes,) = channels_figure(found).axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert lines.keys() == found.curves.keys()
    for name, line in lines.items():
        x, y = line.get_data()
        np.testing.assert_allclose(x, [0, 10, 50, 90], rtol=1e-12)
        np.testing.assert_allclose(y, [100, *(100 * s for s in found.curves[name].values())])
    costliest = list(found.curves)[: -6 if groups > 5 else None : -1]
    assert {text.get_text() for text in axes.texts} == set(costliest)
    colours = {name: line.get_color() for name, line in lines.items()}
    assert len({colours[name] for name in costliest}) == len(costliest) == min(groups, 5)
    assert {colours[name] for name in lines if name not in costliest} <= {"#c4c4c4"}
    for text in axes.texts:
        assert text.get_color() == colours[text.get_text()]
    places = sorted(text.xyann[1] for text in axes.texts)
    assert all(b - a > 0.06 for a, b in pairwise(places))
    assert places[-1] <= 1


def test_titles_and_axes_say_the_model_the_score_and_the_units():
    figure = channels_figure(analysis(9, complete=False))
    (axes,) = figure.axes
    assert "net.onnx" in figure.get_suptitle()
    assert axes.get_ylabel() == "agreement with the whole model (%)"
    assert axes.get_xlabel() == "channels of the group removed (%)"
    assert axes.get_title("left") == (
        "300 samples; the costliest 5 of 9 groups named; interrupted, scores are missing"
    )
    mine = analysis(2, "mine.py 12ab")
    (axes,) = channels_figure(mine).axes
    assert axes.get_ylabel() == "score (mine.py 12ab)"
    assert axes.get_lines()[-1].get_ydata()[-1] == mine.curves["/stage/block.1/conv"][0.9]


def test_a_front_shows_cost_and_score_of_each_point_with_its_number():
    for cost, want, name in (
        ("macs", [20, 40, 60, 80], "multiply-adds (% of 0.0001 million)"),
        ("latency", [40, 50, 60, 70], "latency (% of the whole model's)"),
    ):
        figure = front_figure(front(cost=cost, model="net.onnx"))
        (axes,) = figure.axes
        (line,) = axes.get_lines()
        x, y = line.get_data()
        np.testing.assert_allclose(x, want, rtol=1e-12)
        np.testing.assert_allclose(y, [0, 3, 6, 9])
        assert [t.get_text() for t in axes.texts] == ["0", "1", "2", "3"]
        assert [t.xy for t in axes.texts] == list(zip(x, y, strict=True))
        assert (axes.get_xlabel(), axes.get_ylabel()) == (name, "SQNR (dB)")
        assert figure.get_suptitle() == f"net.onnx: sub-networks, by sqnr and {cost}"
    exact = front(points=(*front().points, point(4, 100, float("inf"))))
    (axes,) = front_figure(exact).axes
    assert len(axes.texts) == 4
    assert "1 without noise left out" in axes.get_title("left")
    (axes,) = front_figure(front(points=(point(0, 50, 0.75),), by="agreement")).axes
    assert axes.get_lines()[0].get_ydata().tolist() == [75]


@pytest.mark.parametrize(
    ("kind", "start"),
    [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF"), ("PNG", b"\x89PNG")],
)
def test_a_plot_is_written_by_the_ending_of_its_file_the_same_each_time(tmp_path, kind, start):
    one, two = tmp_path / f"a.{kind}", tmp_path / f"b.{kind}"
    analysis(50).plot(one)
    analysis(50).plot(two)
    assert one.read_bytes().startswith(start)
    assert one.read_bytes() == two.read_bytes()
    front().plot(two)
    assert one.read_bytes() != two.read_bytes()
    assert "pyplot" not in {name.rpartition(".")[2] for name in sys.modules}


def test_where_no_plot_can_be_is_said(tmp_path, monkeypatch):
    for name in ("a.jpg", "a", "svg"):
        with pytest.raises(OptionError, match=r"\.svg, \.png or \.pdf"):
            front().plot(tmp_path / name)
    with pytest.raises(ModelError, match="does not exist"):
        save_plot(front_figure(front()), tmp_path / "none" / "a.svg")
    monkeypatch.setattr("onnxdrp.plots.find_spec", lambda _name: None)
    with pytest.raises(OptionError, match=r"pip install 'onnxdrp\[plot\]'"):
        check_plot("a.svg")


def test_the_commands_draw_what_they_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    residual_net().save("net.onnx")
    np.savez("calib.npz", **images())

    def run(*arguments):
        return CliRunner().invoke(cli, [*arguments, "net.onnx", "--calib", "calib.npz"])

    channels = ("sensitivity", "--of", "channels", "--rates", "0.5", "--mode", "moments")
    assert run(*channels, "--plot", "sens.svg").exit_code == 0
    text = (tmp_path / "sens.svg").read_text()
    assert "net.onnx: channels removed" in text
    pareto = ("pareto", "-o", "f.json", "--points", "2", "--multiple", "1", "--ratios", "0.5,1")
    result = run(*pareto, "--plot", "front.svg")
    assert result.exit_code == 0, result.output
    assert "net.onnx: sub-networks" in (tmp_path / "front.svg").read_text()
    for arguments, words in (
        ((*channels, "--plot", "sens.txt"), "ends in .svg, .png or .pdf"),
        ((*pareto, "--plot", "front.txt"), "ends in .svg, .png or .pdf"),
        (("sensitivity", "--plot", "sens.svg"), "--plot belongs to --of channels"),
    ):
        refused = run(*arguments)
        assert refused.exit_code == 1
        assert words in refused.output
    assert sorted(p.name for p in tmp_path.glob("*.txt")) == []
