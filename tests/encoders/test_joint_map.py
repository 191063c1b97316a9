from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import special_ortho_group
from threadpoolctl import threadpool_info, threadpool_limits

from artifacts.settings import InputError
from encoders import joint_map as joint_map_module
from encoders.joint_map import JointMap, Moments, embed_across_folds, fit_joint_map, unit_rows


def correlated_pairs(
    n: int, correlations: Sequence[float], d_i: int, d_t: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian pairs with known canonical correlations, mixed, scaled and shifted."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, d_i)), rng.standard_normal((n, d_t))
    for j, rho in enumerate(correlations):
        y[:, j] = rho * x[:, j] + np.sqrt(1 - rho**2) * y[:, j]
    mixed_x = x @ rng.standard_normal((d_i, d_i)) + 3
    mixed_y = 0.1 * y @ rng.standard_normal((d_t, d_t)) - 1
    return mixed_x.astype(np.float32), mixed_y.astype(np.float32)


def test_moments_of_a_union(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint_map_module, "ROWS_AT_ONCE", 7)
    x, y = correlated_pairs(50, [0.8], 4, 3)
    total = Moments.of(x[:20], y[:20]) + Moments.of(x[20:], y[20:])
    expected = np.cov(np.hstack([x, y]).astype(np.float64), rowvar=False, bias=True)
    images, cross, texts = total.covariances()
    np.testing.assert_allclose(np.block([[images, cross], [cross.T, texts]]), expected, atol=1e-10)
    np.testing.assert_allclose(np.hstack(total.means()), np.hstack([x.mean(0), y.mean(0)]), 1e-5)


def test_moments_of_some_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint_map_module, "ROWS_AT_ONCE", 7)
    x, y = correlated_pairs(50, [0.8], 4, 3)
    rows = np.random.default_rng(0).permutation(50)[:23]
    some, expected = Moments.of(x, y, rows), Moments.of(x[rows], y[rows])
    assert some.n_pairs == 23
    np.testing.assert_array_equal(some.products, expected.products)
    np.testing.assert_array_equal(some.sums, expected.sums)


def test_blocks_of_rows_in_files_are_embedded_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = correlated_pairs(90, [0.9, 0.8], 5, 4)
    whole = embed_across_folds(x, y, np.arange(90) // 2, rng=np.random.default_rng(0))
    stored: list[np.ndarray] = []
    for name, side in (("x", x), ("y", y)):
        np.save(tmp_path / f"{name}.npy", side)
        stored.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    monkeypatch.setattr(joint_map_module, "EMBEDDED_AT_ONCE", 4)
    blocks = embed_across_folds(
        stored[0], stored[1], np.arange(90) // 2, rng=np.random.default_rng(0)
    )
    for one, other in zip(whole[:2], blocks[:2], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_maps_of_many_pairs_are_fitted_to_some_of_the_trusted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = correlated_pairs(300, [0.9, 0.8], 5, 4)
    trusted = np.arange(300) < 200
    y[200:] = np.nan  # whoever is not trusted may not be looked at
    monkeypatch.setattr(joint_map_module, "MOST_FITTED", 120)
    with np.errstate(invalid="ignore"):
        *_, full_map = embed_across_folds(
            x, y, np.arange(300), rng=np.random.default_rng(0), trusted=trusted
        )
    assert np.isfinite(full_map.text_axes).all()
    # The mean of 120 of the 200, not of all of them, and of 120 of 200 nearly theirs.
    off = np.abs(full_map.image_mean - x[:200].mean(axis=0)) / x[:200].std(axis=0)
    assert 1e-4 < off.max() < 4 * np.sqrt(1 / 120 - 1 / 200)


@pytest.mark.parametrize("ridge", [0.0, 0.7])
def test_correlations_equal_the_eigenvalue_form(ridge: float) -> None:
    """rho^2 are the eigenvalues of (C_xx + r I)^-1 C_xy (C_yy + s I)^-1 C_yx."""
    x, y = correlated_pairs(400, [0.9, 0.5, 0.2], 6, 4)
    joint_map = fit_joint_map(Moments.of(x, y), 4, ridge)
    covariance = np.cov(np.hstack([x, y]).astype(np.float64), rowvar=False, bias=True)
    c_xx, c_xy, c_yy = covariance[:6, :6], covariance[:6, 6:], covariance[6:, 6:]
    c_xx = c_xx + ridge * np.trace(c_xx) / 6 * np.eye(6)
    c_yy = c_yy + ridge * np.trace(c_yy) / 4 * np.eye(4)
    squares = np.linalg.eigvals(np.linalg.solve(c_xx, c_xy) @ np.linalg.solve(c_yy, c_xy.T))
    rho = np.sqrt(np.sort(squares.real)[:1:-1])
    # Directions have regularised variance one and are scaled by their correlation.
    images, texts = joint_map.image_axes, joint_map.text_axes
    np.testing.assert_allclose(images.T @ c_xx @ images, np.diag(rho**2), atol=1e-8)
    np.testing.assert_allclose(texts.T @ c_yy @ texts, np.diag(rho**2), atol=1e-8)
    np.testing.assert_allclose(images.T @ c_xy @ texts, np.diag(rho**3), atol=1e-8)


def test_known_correlations_are_found() -> None:
    x, y = correlated_pairs(40_000, [0.9, 0.5, 0.2], 6, 4)
    joint_map = fit_joint_map(Moments.of(x, y), 3, ridge=0.0)
    scales = ((x - joint_map.image_mean) @ joint_map.image_axes).std(axis=0)
    np.testing.assert_allclose(scales, [0.9, 0.5, 0.2], atol=0.02)  # 4 / sqrt(40,000)


def test_map_does_not_depend_on_the_scale_of_features() -> None:
    x, y = correlated_pairs(300, [0.9, 0.5], 6, 4)
    small, large = (fit_joint_map(Moments.of(x * s, y), 4) for s in (np.float32(1), np.float32(64)))
    np.testing.assert_allclose(
        np.abs(small.embed_images(x)), np.abs(large.embed_images(x * 64)), atol=1e-5
    )


def random_map(rng: np.random.Generator) -> JointMap:
    return JointMap(
        rng.standard_normal(6),
        rng.standard_normal(5),
        rng.standard_normal((6, 4)),
        rng.standard_normal((5, 4)),
    )


def test_rotation_finds_the_axes_of_a_rotated_map() -> None:
    rng = np.random.default_rng(0)
    joint_map, moments = random_map(rng), Moments.of(*correlated_pairs(200, [0.9], 6, 5))
    rotation = special_ortho_group.rvs(4, random_state=0)
    target = JointMap(
        joint_map.image_mean,
        joint_map.text_mean,
        joint_map.image_axes @ rotation,
        joint_map.text_axes @ rotation,
    )
    found = joint_map.rotated_onto(target, moments)
    np.testing.assert_allclose(found.image_axes, target.image_axes, atol=1e-10)
    np.testing.assert_allclose(found.text_axes, target.text_axes, atol=1e-10)


def test_rotation_keeps_cosines_and_comes_closer() -> None:
    rng = np.random.default_rng(0)
    joint_map, target = random_map(rng), random_map(rng)
    x, y = correlated_pairs(200, [0.9], 6, 5)
    rotated = joint_map.rotated_onto(target, Moments.of(x, y))
    np.testing.assert_allclose(
        rotated.embed_images(x) @ rotated.embed_texts(y).T,
        joint_map.embed_images(x) @ joint_map.embed_texts(y).T,
        atol=1e-5,
    )

    def distance(other: JointMap) -> float:
        centred = (x - x.mean(0), y - y.mean(0))
        axes = (other.image_axes - target.image_axes, other.text_axes - target.text_axes)
        return float(sum(np.square(z @ a).sum() for z, a in zip(centred, axes, strict=True)))

    assert distance(rotated) < distance(joint_map)
    for seed in range(5):
        turn = special_ortho_group.rvs(4, random_state=seed)
        other = JointMap(
            joint_map.image_mean,
            joint_map.text_mean,
            joint_map.image_axes @ turn,
            joint_map.text_axes @ turn,
        )
        assert distance(rotated) < distance(other)


def test_score_comes_from_a_map_that_never_saw_the_image() -> None:
    x, y = correlated_pairs(60, [0.9, 0.8, 0.7], 8, 6)
    image_ids = np.repeat(np.arange(30), 2)
    images, texts, _ = embed_across_folds(x, y, image_ids, rng=np.random.default_rng(5))
    scores = (images * texts).sum(axis=1)
    folds = (np.random.default_rng(5).permutation(30) % 5)[image_ids]
    for fold in range(5):
        fitted = folds != fold
        fold_map = fit_joint_map(Moments.of(x[fitted], y[fitted]), 6)
        expected = (fold_map.embed_images(x) * fold_map.embed_texts(y)).sum(axis=1)
        np.testing.assert_allclose(scores[~fitted], expected[~fitted], atol=1e-5)

    changed = y.copy()
    changed[0] += 10  # nothing else of its fold may notice, its image's other pair included
    images, texts, _ = embed_across_folds(x, changed, image_ids, rng=np.random.default_rng(5))
    difference = np.abs((images * texts).sum(axis=1) - scores)
    same_fold = folds == folds[0]
    same_fold[0] = False
    assert difference[same_fold].max() < 1e-5
    assert np.median(difference[folds != folds[0]]) > 1e-3


@pytest.mark.parametrize("room", [0, 2**31])
def test_cores_and_room_change_no_bit(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    images = rng.normal(size=(90, 40)).astype(np.float32)
    texts = (images[:, :30] + rng.normal(size=(90, 30))).astype(np.float32)
    monkeypatch.setattr(joint_map_module, "BYTES_OF_FOLDS", room)
    found = []
    for cores in (1, 5):
        monkeypatch.setattr(joint_map_module, "n_cores", lambda cores=cores: cores)
        with threadpool_limits(2, "blas"):
            found.append(
                embed_across_folds(images, texts, np.arange(90), rng=np.random.default_rng(0))
            )
            assert {pool["num_threads"] for pool in threadpool_info() if is_blas(pool)} == {2}
    for one, other in zip(found[0][:2], found[1][:2], strict=True):
        np.testing.assert_array_equal(one, other)


def is_blas(pool: dict[str, Any]) -> bool:
    return bool(pool["user_api"] == "blas")


def test_folds_share_one_space() -> None:
    x, y = correlated_pairs(400, [0.95, 0.9, 0.85, 0.8], 8, 6)
    images, texts, full_map = embed_across_folds(x, y, np.arange(400), rng=np.random.default_rng(0))
    # Cosine of what one pair is in its fold's map and in the map of all; 0 if signs were free.
    assert (images * full_map.embed_images(x)).sum(axis=1).mean() > 0.98
    assert (texts * full_map.embed_texts(y)).sum(axis=1).mean() > 0.98


def test_wrong_captions_score_lower() -> None:
    x, y = correlated_pairs(500, [0.95] * 6, 24, 16)
    y[:100] = np.roll(y[:100], 1, axis=0)
    images, texts, _ = embed_across_folds(x, y, np.arange(500), rng=np.random.default_rng(0))
    scores = (images * texts).sum(axis=1)
    assert (scores[100:, None] > scores[None, :100]).mean() > 0.85


def test_maps_are_fitted_to_trusted_and_further_pairs_alone() -> None:
    x, y = correlated_pairs(90, [0.9, 0.7], 8, 6)
    ids, trusted = np.arange(60), np.arange(60) % 3 > 0
    images, texts, full_map = embed_across_folds(
        *(x[:60], y[:60], ids),
        rng=np.random.default_rng(5),
        n_folds=4,
        trusted=trusted,
        further=Moments.of(x[60:], y[60:]),
    )
    folds = np.random.default_rng(5).permutation(60) % 4
    for fold in range(4):
        fitted = np.r_[(folds != fold) & trusted, np.ones(30, dtype=bool)]
        fold_map = fit_joint_map(Moments.of(x[fitted], y[fitted]), 6)
        expected = (fold_map.embed_images(x[:60]) * fold_map.embed_texts(y[:60])).sum(axis=1)
        found = (images * texts).sum(axis=1)
        np.testing.assert_allclose(found[folds == fold], expected[folds == fold], atol=1e-5)
    everything = np.r_[trusted, np.ones(30, dtype=bool)]
    expected_map = fit_joint_map(Moments.of(x[everything], y[everything]), 6)
    np.testing.assert_allclose(full_map.embed_images(x), expected_map.embed_images(x), atol=1e-5)


@pytest.mark.parametrize("n_images", [3, 4, 10])
def test_few_pairs(n_images: int) -> None:
    x, y = correlated_pairs(10, [0.9], 12, 7)
    ids = np.arange(10) % n_images
    images, texts, full_map = embed_across_folds(x[ids], y, ids, rng=np.random.default_rng(0))
    assert images.shape == texts.shape
    assert 1 <= images.shape[1] <= 7
    for rows in (images, texts, full_map.embed_images(x)):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_captions_that_are_all_equal() -> None:
    x, y = correlated_pairs(20, [0.9], 12, 7)
    images, texts, _ = embed_across_folds(
        x, np.tile(y[:1], (20, 1)), np.arange(20), rng=np.random.default_rng(0)
    )
    assert np.isfinite(images).all()
    assert np.isfinite(texts).all()


def test_too_few_images() -> None:
    x, y = correlated_pairs(10, [0.9], 12, 7)
    with pytest.raises(InputError, match="at least 3 different images, got 2"):
        embed_across_folds(x, y, np.arange(10) % 2, rng=np.random.default_rng(0))


def test_unit_rows() -> None:
    rows = np.array([[3, 4], [0, 0], [-1e-30, 0], [1e30, 1e30]], np.float32)
    expected = np.array([[0.6, 0.8], [0, 0], [-1, 0], [0.5**0.5, 0.5**0.5]])
    assert unit_rows(rows).dtype == np.float32
    np.testing.assert_allclose(unit_rows(rows), expected, atol=1e-7)


def test_where_one_decomposition_fails_another_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts = correlated_pairs(200, (0.9, 0.6, 0.3), 5, 4)
    wanted = fit_joint_map(Moments.of(images, texts), 3)
    real: Any = vars(joint_map_module)["svd"]

    def failing(*given: Any, lapack_driver: str = "gesdd", **more: Any) -> Any:
        if lapack_driver == "gesdd":
            raise np.linalg.LinAlgError("SVD did not converge")
        return real(*given, lapack_driver=lapack_driver, **more)

    monkeypatch.setattr(joint_map_module, "svd", failing)
    found = fit_joint_map(Moments.of(images, texts), 3)
    first, second = (m.embed_images(images) @ m.embed_texts(texts).T for m in (wanted, found))
    np.testing.assert_allclose(first, second, atol=1e-5)
    found.rotated_onto(wanted, Moments.of(images, texts))
