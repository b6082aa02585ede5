"""SVG charts."""

import xml.etree.ElementTree as ET

import pytest

from fcos_recipe.report.svg import MOST_POINTS, Series, line_chart, number, thin, ticks


def polylines(svg: str) -> list[list[tuple[float, float]]]:
    return [
        [tuple(map(float, p.split(","))) for p in e.attrib["points"].split()]
        for e in ET.fromstring(svg).iter()
        if e.tag == "polyline" and e.attrib["class"] == "line"
    ]


def test_a_curve_goes_where_its_values_are():
    svg = line_chart([Series("a", [0, 5, 10], [0, 2, 1])], "x", "step", "y", y_range=(0, None))
    ((a, b, c),) = polylines(svg)
    assert a[0] < b[0] < c[0] and b[0] - a[0] == pytest.approx(c[0] - b[0], abs=0.2)
    assert b[1] < c[1] < a[1]  # up is less
    assert a[1] - c[1] == pytest.approx((a[1] - b[1]) / 2, abs=0.2)


@pytest.mark.parametrize("ys", [[None, None], [float("nan"), 1.0], [1.0, 1.0], [-3.0, -3.0],
                                [1e-30, 2e-30], [1e30, -1e30], [0.0, 0.0]])  # fmt: skip
def test_odd_values(ys):
    svg = line_chart([Series("<b>&", [1, 2], ys)], '<script>"', "<x>", "y&")
    if ys == [None, None]:
        assert svg == ""
    else:
        assert ET.fromstring(svg).attrib["aria-label"] == '<script>"'


def test_single_points_are_dots_and_many_are_thinned():
    svg = line_chart([Series("a", [3], [1.0])], "x", "step", "y")
    assert "<circle" in svg and not polylines(svg)
    points, band = thin([(k, k % 2) for k in range(100_000)])
    assert len(points) == len(band) == MOST_POINTS
    assert all(y == pytest.approx(0.5, abs=0.01) for _, y in points)
    assert all((low, high) == (0, 1) for _, low, high in band)
    assert thin([(1, 2)]) == ([(1, 2)], [])


def test_ticks_are_round_and_inside():
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(1, 48) == [10, 20, 30, 40]
    for low, high in ((0, 0.005), (3, 3.0001), (-7, 90_000)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 7 and low <= found[0] and found[-1] <= high
    assert [number(v) for v in (0.00025, 12, 90_000)] == ["0.00025", "12", "90k"]
