"""Figures of samples that are no images: what their axes hold."""

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import ImageDataset
from datasets.units import Interval
from sampling.figures import data_rows, draw_figure, save_figure


def draws(*shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape)


def panels(figure):
    """Return the axes that are shown."""
    return [panel for panel in figure.axes if panel.get_visible()]


def bars(panel):
    """Return the heights of the bars of each histogram, and the edges of their bins."""
    found = [patch.get_data() for patch in panel.patches]
    assert all(np.array_equal(data.edges, found[0].edges) for data in found)
    return [data.values for data in found], found[0].edges


def title(figure):
    return figure.get_suptitle()


def test_pairs_of_few_columns_with_their_marginals():
    samples, data = draws(700, 3), draws(900, 3, seed=1) * [1.0, 2.0, 1.0]
    figure = draw_figure(samples, data, ["rain", "wind", "ice"])
    assert title(figure) == "700 samples beside 900 rows of data"
    shown = panels(figure)
    assert len(shown) == 6
    for panel, column in zip((shown[0], shown[2], shown[5]), range(3), strict=True):
        (ours, theirs), edges = bars(panel)
        assert ours.sum() == pytest.approx(1.0) and theirs.sum() == pytest.approx(1.0) and len(ours) == 40
        assert edges[0] == min(samples[:, column].min(), data[:, column].min())
        assert edges[-1] == max(samples[:, column].max(), data[:, column].max())
        np.testing.assert_allclose(ours, np.histogram(samples[:, column], edges)[0] / 700)
        assert panel.get_ylim()[1] == pytest.approx(1.05 * max(ours.max(), theirs.max()))
    pairs = shown[3]  # ice by rain: the data lie behind the samples
    assert np.array_equal(pairs.lines[1].get_xydata(), samples[:, [0, 2]])
    assert np.array_equal(pairs.lines[0].get_xydata(), data[:, [0, 2]])
    assert pairs.get_xlabel() == "rain" and pairs.get_ylabel() == "ice"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["samples", "data"]


@pytest.mark.parametrize(("bound", "end", "place"), [(0.0, 0, "left"), (1.0, -1, "right")])
def test_an_atom_at_a_bound_is_a_bar_that_is_cut_and_labelled(bound, end, place):
    samples, data = draws(1000, 1), draws(1000, 1, seed=1)
    samples[:400], data[:300] = bound, bound
    (panel,) = panels(draw_figure(samples, data))
    (ours, theirs), _ = bars(panel)
    assert 0.4 <= ours[end] < 0.43 and 0.3 <= theirs[end] < 0.33
    between = max(ours[1:-1].max(), theirs[1:-1].max())
    assert panel.get_ylim()[1] == pytest.approx(1.6 * between) and 1.6 * between < 0.06
    labels = [(text.get_text(), text.get_color(), text.get_horizontalalignment()) for text in panel.texts]
    assert labels == [
        (f"{100 * ours[end]:.0f} %", "tab:blue", place),
        (f"{100 * theirs[end]:.0f} %", "tab:orange", place),
    ]


def test_integers_have_a_bin_each():
    samples = np.array([[0], [0], [3], [16]])
    (panel,) = panels(draw_figure(samples))
    (shares,), edges = bars(panel)
    assert np.array_equal(edges, np.arange(-0.5, 17)) and shares.tolist() == [0.5, 0, 0, 0.25, *[0] * 12, 0.25]
    (panel,) = panels(draw_figure(np.full((5, 1), 2.5)))
    assert bars(panel)[0][0].tolist() == [1.0]


def test_marginals_of_many_columns():
    samples, data = draws(300, 100), draws(1200, 100, seed=1)
    figure = draw_figure(samples, data)
    assert title(figure) == "300 samples beside 1,000 of 1,200 rows of data, 64 of 100 columns"
    shown = panels(figure)
    assert len(shown) == 64 and [panel.get_title() for panel in shown] == list(map(str, range(64)))
    (ours, theirs), edges = bars(shown[63])
    np.testing.assert_allclose(ours, np.histogram(samples[:, 63], edges)[0] / 300)
    np.testing.assert_allclose(theirs, np.histogram(data[:1000, 63], edges)[0] / 1000)
    names = [f"\x1b[1m{k}" for k in range(9)]
    assert panels(draw_figure(samples[:, :9], None, names))[8].get_title() == "\\x1b[1m8"


def test_curves_over_those_of_the_data():
    samples, data = draws(20, 2, 30), draws(100, 2, 30, seed=1)
    figure = draw_figure(samples, data, ["height", "pressure"])
    assert title(figure) == "8 of 20 samples beside 50 of 100 rows of data"
    first, second = panels(figure)
    assert len(second.lines) == 58 and second.get_ylabel() == "pressure" and second.get_xlabel() == "position"
    grey, ours = second.lines[:50], second.lines[50:]
    assert {line.get_color() for line in grey} == {"0.75"} and len({line.get_color() for line in ours}) == 8
    assert np.array_equal([line.get_ydata() for line in grey], data[:50, 1])
    assert np.array_equal([line.get_ydata() for line in first.lines[50:]], samples[:8, 0])


def test_fields_of_a_channel_have_one_colour_scale():
    samples, data = draws(3, 2, 6, 9) * 2.0, draws(5, 2, 6, 9, seed=1) - 1.0
    figure = draw_figure(samples, data, ["u", "v"])
    assert title(figure) == "3 samples beside 3 of 5 rows of data"
    pictures = [panel for panel in panels(figure) if panel.images]
    assert len(pictures) == 12 and [panel.get_title() for panel in pictures[:3]] == ["u", "v", ""]
    assert [pictures[k].get_ylabel() for k in range(0, 12, 2)] == ["samples"] * 3 + ["data"] * 3
    assert np.array_equal(pictures[3].images[0].get_array(), samples[1, 1])
    assert np.array_equal(pictures[10].images[0].get_array(), data[2, 0])
    for channel in range(2):
        low, high = data[:, channel].min(), samples[:, channel].max()
        assert {panel.images[0].get_clim() for panel in pictures[channel::2]} == {(low, high)}
    assert len([panel for panel in panels(draw_figure(samples[:, :1])) if panel.images]) == 3


def test_middle_slices_of_volumes():
    samples = draws(2, 1, 4, 5, 6)
    figure = draw_figure(samples)
    assert title(figure) == "2 samples"
    pictures = [panel for panel in panels(figure) if panel.images]
    assert [panel.get_title() for panel in pictures[:3]] == ["0, axis 1", "0, axis 2", "0, axis 3"]
    expected = [samples[0, 0, 2], samples[0, 0, :, 2], samples[0, 0, :, :, 3], samples[1, 0, 2]]
    for panel, values in zip(pictures, expected, strict=False):
        assert np.array_equal(panel.images[0].get_array(), values)


def test_the_file_is_a_picture_and_nothing_else_is_left(tmp_path):
    save_figure(tmp_path / "figure.png", draws(10, 2), what="rows of data")
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
    image = Image.open(tmp_path / "figure.png")
    assert image.format == "PNG" and image.size == (520, 520) and len(np.unique(np.asarray(image))) > 20


def test_rows_of_the_data_are_evenly_spaced_and_in_their_units():
    labels, x = torch.zeros(2500, dtype=torch.int64), torch.arange(2500.0)[:, None]
    rows = data_rows(ImageDataset(x, labels, 1, levels=None, units=Interval((0.0,), (2500.0,))))
    assert rows[:, 0].tolist() == list(range(0, 2500, 3))
    levels = torch.tensor([[0], [51], [255]], dtype=torch.uint8)
    np.testing.assert_allclose(data_rows(ImageDataset(levels, labels[:3], 1))[:, 0], [0.0, 0.2, 1.0], atol=1e-7)


def test_names_are_no_formulas(tmp_path):
    figure = draw_figure(draws(20, 2), draws(20, 2), ["price in $\\frac$", "b$_{"])
    assert panels(figure)[-1].get_xlabel() == "b\\$_{"
    save_figure(tmp_path / "x.png", draws(20, 9), names=["$\\frac$"] * 9)


def test_truth_values_are_0_and_1():
    data = draws(60, 1) < 0.25
    (panel,) = panels(draw_figure(np.ones((10, 1), np.int64), data))
    (ours, theirs), edges = bars(panel)
    assert edges.tolist() == [-0.5, 0.5, 1.5] and ours.tolist() == [0.0, 1.0]
    assert theirs.tolist() == [1 - data.mean(), data.mean()]
