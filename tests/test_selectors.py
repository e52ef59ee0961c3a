"""Selectors: names, globs, regular expressions, and what is said of those that match nothing."""

import pytest

from onnxdrp.errors import OptionError
from onnxdrp.selectors import check_selector, select

NAMES = {
    "/stem/Conv": ("/stem/Conv", "stem.weight"),
    "/block.1/Conv": ("/block.1/Conv", "block.1.weight"),
    "/block.2/Conv": ("/block.2/Conv", "block.2.weight"),
    "fc[0]": ("fc[0]", "fc.weight"),
}


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("/stem/Conv", ["/stem/Conv"]),
        ("stem.weight", ["/stem/Conv"]),
        ("/block.?/Conv", ["/block.1/Conv", "/block.2/Conv"]),
        ("*/Conv", ["/stem/Conv", "/block.1/Conv", "/block.2/Conv"]),
        ("*", list(NAMES)),
        ("block.*", ["/block.1/Conv", "/block.2/Conv"]),
        (r"re:/block\.[2-9]/.*", ["/block.2/Conv"]),
        (r"re:.*weight", list(NAMES)),
        ("fc[0]", ["fc[0]"]),  # as a glob it would match fc0 alone
        ("FC[[]0]", None),  # case counts
        ("re:block", None),  # the whole name must match
    ],
)
def test_what_a_selector_matches(selector, found):
    if found is None:
        with pytest.raises(OptionError):
            select(selector, NAMES, "layer")
    else:
        assert select(selector, NAMES, "layer") == found


def test_one_that_matches_nothing_names_the_nearest():
    with pytest.raises(OptionError, match=r"no layer matches '/block\.3/Conv'; near: '/block\.2/"):
        select("/block.3/Conv", NAMES, "layer")
    with pytest.raises(OptionError, match="onnxdrp info"):
        select("zzz", NAMES, "layer")


@pytest.mark.parametrize("selector", ["re:(", "re:*", "", 3])
def test_a_selector_that_is_none_is_refused(selector):
    with pytest.raises(OptionError, match="selector"):
        check_selector(selector)


@pytest.mark.parametrize("selector", ["a", "[", "re:a|b", "*"])
def test_a_selector_that_is_one_is_not(selector):
    check_selector(selector)
