"""How faces hang together, against definitions that are written out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.modalities.shape3d.mesh_file import Mesh
from fewstep.modalities.shape3d.surface import connectivity as connectivity_module
from fewstep.modalities.shape3d.surface.connectivity import (
    components,
    connectivity,
    directed_edges,
    in_pairs,
    open_edges,
    renumbered,
)

triangles = st.lists(st.permutations(range(7)).map(lambda order: order[:3]), min_size=1, max_size=12)


@given(triangles)
@settings(max_examples=200, deadline=None)
def test_an_edge_is_open_where_no_face_runs_the_other_way(faces: list[list[int]]) -> None:
    there = [(face[i], face[(i + 1) % 3], n) for i in range(3) for n, face in enumerate(faces)]
    expected = [edge for edge in there if edge[1::-1] not in {other[:2] for other in there}]
    ends, face = open_edges(np.array(faces))
    assert [(a, b, n) for (a, b), n in zip(ends.tolist(), face.tolist(), strict=True)] == expected


def test_a_closed_surface_has_no_open_edge_also_where_four_faces_meet_at_one() -> None:
    closed = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]])
    assert in_pairs(directed_edges(closed)[0])
    assert len(open_edges(closed)[0]) == 0
    for other in (closed, closed[:, ::-1], np.where(closed < 2, closed, closed + 2)):
        both = np.concatenate([closed, other])
        assert not in_pairs(directed_edges(both)[0])
        assert len(open_edges(both)[0]) == 0
    large = closed + 100_000  # more vertices than 32 bits can tell edges of
    assert in_pairs(directed_edges(large)[0])
    assert len(open_edges(large[:3])[0]) == 3
    assert not in_pairs(directed_edges(closed[:1])[0])


@given(triangles)
@settings(max_examples=200, deadline=None)
def test_faces_of_one_piece_are_joined_by_common_vertices(faces: list[list[int]]) -> None:
    pieces = [{*face} for face in faces]
    for _ in faces:
        pieces = [set.union(*[other for other in pieces if one & other]) for one in pieces]
    piece, count = components(np.array(faces))
    assert sorted({*piece.tolist()}) == list(range(count))
    for one, found in zip(pieces, piece, strict=True):
        for other, theirs in zip(pieces, piece, strict=True):
            assert (one == other) == (found == theirs)


def test_vertices_at_one_place_are_one_whatever_the_sign_of_zero() -> None:
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, -0.0], [1, -0.0, 0], [1, 1, 0]], np.float32)
    mesh = Mesh(vertices, np.array([[0, 1, 2], [3, 4, 5]]))
    assert connectivity(mesh).components[1] == 1
    assert len(connectivity(mesh).open_edges[0]) == 4
    assert connectivity(mesh) is connectivity(mesh)
    apart = Mesh(vertices + np.repeat([[0], [1e-6]], 3, axis=0).astype(np.float32), mesh.faces)
    assert connectivity(apart).components[1] == 2


def test_places_with_one_code_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = np.random.default_rng(0)
    vertices = draws.integers(0, 3, (60, 3)).astype(np.float32)
    mesh = Mesh(vertices, draws.integers(0, 60, (40, 3)))
    expected = np.unique(vertices, axis=0, return_inverse=True)[1][mesh.faces].ravel()
    for mixers in (connectivity_module.MIXERS, np.zeros(3, np.uint64), np.ones(3, np.uint64)):
        monkeypatch.setattr(connectivity_module, "MIXERS", mixers)
        places = connectivity_module.Connectivity(mesh).faces.ravel()
        assert np.array_equal(places[:, None] == places, expected[:, None] == expected)


def test_numbers_that_occur_are_counted_from_zero() -> None:
    found, place = renumbered(np.array([[7, 2], [4, 7]]), 9)
    assert (found.tolist(), place.tolist()) == ([2, 4, 7], [[2, 0], [1, 2]])
