"""Overlays: every axis of the file ends up where the letters say, whatever way the file runs."""

import nibabel as nib
import numpy as np
import pytest

from evaluation.figures.saliency import (
    Case,
    contact_sheet,
    energy_against_chance,
    overlay,
    through_maximum,
    to_canonical,
)

RAS = np.array([[2.0, 0, 0, -10], [0, 3, 0, -20], [0, 0, 5, -30], [0, 0, 0, 1]])


def stored(array, codes):
    """The same image as a file of another orientation has it."""
    image = nib.Nifti1Image(array, RAS)
    turn = nib.orientations.ornt_transform(nib.io_orientation(RAS), nib.orientations.axcodes2ornt(codes))
    other = image.as_reoriented(turn)
    return other.get_fdata(), other.affine


def case(codes="RAS", *, shape=(7, 8, 9), is_empty=False):
    """A grey gradient, a map with its peak at (5, 2, 6) mm-wise on the right, behind and above, and a mask there."""
    image = np.arange(np.prod(shape), dtype=float).reshape(shape)
    saliency, mask = np.zeros(shape), np.zeros(shape)
    mask[4:7, 1:4, 5:8] = 1
    if not is_empty:
        saliency[5, 2, 6], saliency[4, 2, 6] = 4, 2
    turned = [stored(one, codes) for one in (image, saliency, mask)]
    return Case(turned[0][0], turned[1][0], turned[0][1], turned[2][0], "somebody"), image, saliency


@pytest.mark.parametrize("codes", ["RAS", "PSR", "LPI", "SAL"])
def test_the_order_of_a_file_is_turned_as_nibabel_does(codes):
    shown, image, _ = case(codes)
    turned, affine, spacing = to_canonical(shown.image, shown.affine)
    np.testing.assert_array_equal(turned, image)
    np.testing.assert_allclose(affine, RAS)
    assert spacing.tolist() == [2, 3, 5]


def test_an_oblique_image_goes_to_the_nearest_axes():
    angle = np.deg2rad(30)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([2.0, 3.0, 5.0])[:, [1, 2, 0]] * [1, -1, 1]
    array = np.random.default_rng(0).random((4, 5, 6))
    expected = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
    turned, found, _ = to_canonical(array, affine)
    np.testing.assert_array_equal(turned, expected.get_fdata())
    np.testing.assert_allclose(found, expected.affine)


@pytest.mark.parametrize("codes", ["RAS", "PSR", "LPI"])
def test_slices_go_through_the_maximum_in_millimetres_with_letters_at_their_ends(codes):
    shown, image, saliency = case(codes)
    panels = overlay(shown, map_name="Grad-CAM", mask_name="lesion").axes[:3]
    assert [axes.get_xlabel() for axes in panels] == ["x = 0 mm", "y = \u221214 mm", "z = 0 mm"]
    for axes, axis, place, letters in zip(panels, range(3), (5, 2, 6), ("PAIS", "LRIS", "LRPA"), strict=True):
        grey, heat = axes.images
        values = np.take(image, place, axis).T
        assert grey.origin == "lower"
        assert np.corrcoef(grey.get_array().ravel(), values.ravel())[0, 1] > 0.99
        np.testing.assert_allclose(heat.get_array(), np.take(saliency, place, axis).T / 4)
        sizes = [size for other, size in enumerate((14, 24, 45)) if other != axis]
        assert axes.get_xlim() == (0, sizes[0])
        assert axes.get_ylim() == (0, sizes[1])
        places = {text.get_text(): text.get_position() for text in axes.texts}
        assert "".join(places) == letters
        assert [round(places[letter][index]) for letter, index in zip(letters, (0, 0, 1, 1), strict=True)] == [
            0,
            1,
            0,
            1,
        ]
        outline = np.concatenate([path.vertices for path in axes.collections[0].get_paths()])
        low = np.array([2.0 * 4, 3.0 * 1, 5.0 * 5])[[other for other in range(3) if other != axis]]
        high = np.array([2.0 * 7, 3.0 * 4, 5.0 * 8])[[other for other in range(3) if other != axis]]
        np.testing.assert_allclose(outline.min(axis=0), low)
        np.testing.assert_allclose(outline.max(axis=0), high)


def test_an_empty_map_is_drawn_and_said_to_be_empty():
    shown, _, _ = case(is_empty=True)
    figure = overlay(shown)
    figure.canvas.draw()
    assert figure.axes[-1].get_ylabel() == "the map is 0 everywhere"
    assert not overlay(Case(shown.image, shown.saliency, shown.affine)).axes[0].collections


def test_a_contact_sheet_shows_the_axial_slice_of_everybody():
    shown = [through_maximum(case(codes)[0]) for codes in ("RAS", "PSR", "LPI")]
    assert {np.asarray(one.image).shape for one in shown} == {(7, 8, 1)}
    panels = contact_sheet(shown, num_columns=2).axes
    assert [axes.get_xlabel() for axes in panels[:3]] == ["z = 0 mm"] * 3
    for axes in panels[:3]:
        np.testing.assert_allclose(axes.images[1].get_array(), case()[2][:, :, 6].T / 4)
    assert not panels[3].axison


def test_energy_is_drawn_against_chance_without_those_who_have_none():
    (axes,) = energy_against_chance([0.2, np.nan, 0.1], [0.05, 0.0, 0.2], mask_name="lesion").axes
    np.testing.assert_array_equal(axes.lines[1].get_xydata(), [[0.05, 0.2], [0.2, 0.1]])
    assert axes.get_xlim() == axes.get_ylim()
