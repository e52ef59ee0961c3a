import json

import numpy as np
import pytest
from builders import conv_net
from click.testing import CliRunner

import onnxdrp
from onnxdrp import demo
from onnxdrp.cli import cli
from onnxdrp.datareaders import open_reader
from onnxdrp.errors import OptionError, PassError
from onnxdrp.evaluation import accuracy
from onnxdrp.model import Model

IMAGES = {"mean": demo.MEAN, "std": demo.STD}


@pytest.fixture(scope="module")
def images():
    return lambda model: open_reader(demo.CALIBRATE_IMAGES, model, batch=20, **IMAGES)


def test_half_of_the_multiply_adds_cost_little_once_repaired(modA, images):
    model = Model.load(modA)
    test = open_reader(demo.TEST, model, batch=100, **IMAGES)
    report = onnxdrp.slim(model, ratio=0.5, calib=images(model), data=test)
    figures = report.as_dict()
    (removal,) = (r for r in report.records if r.name == "remove-channels")
    before, after = removal.stats["macs"]
    assert 0.5 <= after / before <= 0.56
    assert removal.stats["params"][1] < 0.6 * removal.stats["params"][0]
    channels = removal.stats["channels"]
    assert len(channels) >= 8
    assert all(pair[1] % 8 == 0 for pair in channels.values())
    recovery = figures["recovery"]
    assert recovery["pruned"]["sqnr_db"] < 3 < 10 < recovery["repaired"]["sqnr_db"]
    assert figures["accuracy"]["change"] > -3
    assert accuracy(report.model, test).top1.mean() > 0.9


def test_the_sparse_form_computes_what_the_slim_form_does(modA, images):
    slim = onnxdrp.slim(modA, rate=0.5, recover="none").model
    sparse = onnxdrp.slim(modA, rate=0.5, recover="none", sparse=True).model
    feeds = {name: value[:8] for name, value in next(iter(images(slim).batches())).items()}
    a, b = (m.session(optimize=False).run(None, feeds)[0] for m in (slim, sparse))
    assert a.std() > 0.1
    np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())
    assert slim.inventory()[1] < 0.5 * sparse.inventory()[1]
    assert sparse.inventory()[1] == onnxdrp.preprocess(modA).model.inventory()[1]


def test_without_data_nothing_is_repaired_and_options_of_that_are_refused():
    report = onnxdrp.slim(Model.from_proto(conv_net()), rate=0.5, multiple=1, auto_excludes=False)
    assert "refit-weights" not in [r.name for r in report.records]
    with pytest.raises(OptionError, match="memory_limit does not go with recover none"):
        onnxdrp.slim(Model.from_proto(conv_net()), rate=0.5, memory_limit=1 << 20)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give either rate, of the channels, or ratio"),
        ({"ratio": 0.5, "rate": 0.5}, "give either rate, of the channels, or ratio"),
        ({"ratio": 1.0}, r"ratio 1\.0 is outside"),
        ({"rate": 0.5, "multiple": 0}, "multiple 0"),
    ],
)
def test_what_makes_no_sense_is_refused(options, words):
    with pytest.raises(OptionError, match=words):
        onnxdrp.slim(Model.from_proto(conv_net()), **options)


def test_a_selector_that_matches_nothing_is_an_error():
    with pytest.raises(PassError, match="nowhere"):
        onnxdrp.slim(Model.from_proto(conv_net()), rate=0.5, exclude=["nowhere"])


def test_the_command_writes_the_smaller_model(tmp_path, modA):
    out = tmp_path / "slim.onnx"
    arguments = ["slim", str(modA), "-o", str(out), "--rate", "0.5", "--json"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["model_bytes"] == out.stat().st_size < 0.5 * modA.stat().st_size
    removal = next(r for r in told["passes"] if r["name"] == "remove-channels")
    assert removal["stats"]["macs"][1] < 0.5 * removal["stats"]["macs"][0]
    Model.load(out).session()
