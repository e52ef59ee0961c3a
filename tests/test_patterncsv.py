"""Activation functions as CSV: what a line means, and where it matches."""

import pytest
from quantizing import parse

from onnxdrp.errors import OptionError
from onnxdrp.patterncsv import ActivationPattern, find_pattern, read_patterns

HEAD = '<ir_version: 10, opset_import: ["" : 18]> g (float[1, 4] x) => (float[1, 4] y)'
MISH = "[plus] a = Softplus(x) [tanh] b = Tanh(a) [mul] y = Mul(x, b)"


def write(folder, text, name="act.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def found(body, *operators):
    quantized = tuple(op.startswith("^") for op in operators)
    pattern = ActivationPattern(tuple(op.removeprefix("^") for op in operators), quantized, "here")
    return find_pattern(pattern, parse(f"{HEAD} {{ {body} }}").nodes())


def test_the_lines_of_the_manual_are_read_as_it_has_them(tmp_path):
    path = write(tmp_path, "Mish\nSoftplus, Tanh, ^Mul\nExp, Add, Log, Tanh, ^Mul\n")
    patterns = read_patterns(path)
    assert [p.operators for p in patterns] == [
        ("Mish",),
        ("Softplus", "Tanh", "Mul"),
        ("Exp", "Add", "Log", "Tanh", "Mul"),
    ]
    assert [p.quantized[-1] for p in patterns] == [False, True, True]
    assert not any(any(p.quantized[:-1]) for p in patterns)
    assert [str(p) for p in patterns] == path.read_text().splitlines()
    assert patterns[1].where == f"{path}, line 2"


def test_blanks_line_ends_and_a_byte_order_mark_mean_nothing(tmp_path):
    plain = read_patterns(write(tmp_path, "Add,Div\nSelu\n"))
    text = "\ufeff\r\n  Add ,\tDiv  \r\n\n   \nSelu"
    odd = read_patterns(write(tmp_path, text, "odd.csv"))
    assert [p.operators for p in odd] == [p.operators for p in plain] == [("Add", "Div"), ("Selu",)]
    assert read_patterns(write(tmp_path, "Tanh, ^ Mul"))[0].quantized == (False, True)


def test_a_folder_is_all_its_csv_files(tmp_path):
    write(tmp_path, "Tanh", "b.csv")
    write(tmp_path, "Selu\nElu", "a.csv")
    write(tmp_path, "no pattern at all", "readme.txt")
    assert [p.operators[0] for p in read_patterns(tmp_path)] == ["Selu", "Elu", "Tanh"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no pattern"),
        ("\n \n", "holds no pattern"),
        ("Tanh\nAdd,,Div", r"act\.csv, line 2: an operator is missing in 'Add,,Div'"),
        ("Add,", "line 1: an operator is missing"),
        ("Add, ^", "an operator is missing"),
        ("^Add, ^Mul", "every operator has a \\^"),
        (b"Tanh\n" + b"\xff\xfe", r"act\.csv: is not UTF-8 text \(byte 5\)"),
    ],
)
def test_what_is_no_pattern_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(OptionError, match=message):
        read_patterns(write(tmp_path, text))


def test_what_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(OptionError, match="cannot be read"):
        read_patterns(tmp_path / "none.csv")
    with pytest.raises(OptionError, match="cannot be read"):
        read_patterns("a\0b")
    with pytest.raises(OptionError, match=r"has no \.csv file"):
        read_patterns(tmp_path)


def test_a_match_is_a_chain_and_what_has_a_caret_is_not_kept():
    assert found(MISH, "Softplus", "Tanh", "^Mul") == ["plus", "tanh"]
    assert found(MISH, "softplus", "TANH", "mul") == ["plus", "tanh", "mul"]
    assert found(MISH, "^Softplus", "Tanh") == ["tanh"]
    assert found(MISH, "Tanh", "Softplus") == []  # from the input side
    assert found(MISH, "Softplus", "Mul") == []  # with nothing between
    assert found(MISH, "Softplus", "Tanh", "^Mul", "Add") == []


def test_only_nodes_of_whole_matches_are_kept():
    body = """[t1] a = Tanh(x) [e1] b = Exp(a) [t2] c = Tanh(b) [m] d = Mul(c, x)
              [t3] e = Tanh(d) [o] y = Mul(e, b)"""
    assert found(body, "Tanh", "^Mul") == ["t2", "t3"]
    assert found(body, "Exp", "Tanh", "Mul", "Tanh") == ["e1", "t2", "m", "t3"]
    assert found(body, "Exp", "Mul") == ["e1", "o"]  # others read b as well
    assert found(body, "Tanh", "^Mul", "Tanh", "^Mul") == ["t2", "t3"]


def test_many_paths_cost_no_time():
    """Each of 40 steps doubles the number of paths."""
    steps = " ".join(f"[n{i}] a{i} = Add({f'a{i - 1}, a{i - 1}' if i else 'x, x'})"
                     for i in range(40))  # fmt: skip
    assert len(found(f"{steps} y = Exp(a39)", *["Add"] * 40, "^Exp")) == 40
