"""Feature statistics: against numpy and NVlabs' numbers, whatever the batches, and through files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stylegan_di.dnnlib.util import UserError
from stylegan_di.metrics.statistics import FeatureStats, FeatureSums, load_stats, save_stats

GOLDEN = Path(__file__).parent / "golden" / "metrics"


def gather(features: np.ndarray, batch: int, *, keep: bool = False) -> FeatureStats:
    sums = FeatureSums(features.shape[1], keep_features=keep)
    for chunk in torch.from_numpy(features).split(batch):
        sums.append(chunk)
    return sums.finish(extractor="test")


@pytest.mark.parametrize("batch", [1, 7, 64, 1000])
def test_numpys_mean_and_covariance_whatever_the_batch(batch: int) -> None:
    features = np.random.default_rng(0).normal(3, 2, [100, 5]).astype(np.float32)
    stats = gather(features, batch)
    wide = features.astype(np.float64)
    np.testing.assert_allclose(stats.mean, wide.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(stats.cov, np.cov(wide.T), rtol=1e-11)
    np.testing.assert_allclose(stats.covariance(ddof=1), np.cov(wide.T, ddof=1), rtol=1e-11)
    np.testing.assert_allclose(stats.covariance(ddof=0), np.cov(wide.T, ddof=0), rtol=1e-11)


def test_stylegan2_adas_mean_and_covariance() -> None:
    golden = np.load(GOLDEN / "sg2_metrics.npz")
    for stats, name in (
        (gather(golden["gen"], 64), "gen"),
        (gather(golden["real"][:290], 64), "real_first290"),
    ):
        np.testing.assert_allclose(stats.mean, golden[f"mu_{name}"], rtol=1e-12)
        np.testing.assert_allclose(stats.covariance(ddof=0), golden[f"cov_{name}"], rtol=1e-11, atol=1e-13)


def test_features_are_kept_only_when_asked_for() -> None:
    features = np.random.default_rng(1).normal(size=[10, 3]).astype(np.float32)
    assert gather(features, 4).features is None
    np.testing.assert_array_equal(gather(features, 4, keep=True).features, features)


def test_one_image_has_no_covariance() -> None:
    with pytest.raises(UserError, match="1 image"):
        gather(np.zeros([1, 3], dtype=np.float32), 1)


def test_a_file_brings_everything_back(tmp_path: Path) -> None:
    stats = gather(np.random.default_rng(2).normal(size=[10, 3]).astype(np.float32), 4, keep=True)
    save_stats(tmp_path / "a.npz", stats, {"label_counts": np.arange(10)})
    loaded = load_stats(tmp_path / "a.npz")
    assert (loaded.num, loaded.extractor) == (10, "test")
    for name in ("mean", "cov", "features"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(stats, name))
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["label_counts"], np.arange(10))
        assert file["mu"].dtype == file["sigma"].dtype == np.float64


def test_edms_files_are_read_and_do_not_tell_n(tmp_path: Path) -> None:
    golden = np.load(GOLDEN / "edm_fid.npz")
    np.savez(tmp_path / "ref.npz", mu=golden["mu_ref"], sigma=golden["sigma_ref"])
    stats = load_stats(tmp_path / "ref.npz")
    np.testing.assert_array_equal(stats.covariance(ddof=1), golden["sigma_ref"])
    assert (stats.num, stats.extractor, stats.features) == (None, None, None)
    with pytest.raises(ValueError, match="not known"):
        stats.covariance(ddof=0)


EYE = np.eye(3)
BAD_FILES = {
    "no sigma": {"mu": EYE[0]},
    "object array": {"mu": np.array([1, "a", None], dtype=object), "sigma": EYE},
    "complex numbers": {"mu": EYE[0].astype(complex), "sigma": EYE},
    "times": {"mu": EYE[0], "sigma": EYE.astype("datetime64[s]")},
    "strings": {"mu": EYE[0].astype(str), "sigma": EYE},
    "shapes": {"mu": EYE[0], "sigma": np.eye(4)},
    "nan": {"mu": EYE[0], "sigma": np.full([3, 3], np.nan)},
    "text": {"mu": np.array(["a", "b", "c"]), "sigma": EYE},
    "features": {"mu": EYE[0], "sigma": EYE, "num": 7, "features": np.zeros([6, 3])},
    "num": {"mu": EYE[0], "sigma": EYE, "num": np.zeros(2)},
    "num of one": {"mu": EYE[0], "sigma": EYE, "num": 1},
    "negative num": {"mu": EYE[0], "sigma": EYE, "num": -5},
    "fractional num": {"mu": EYE[0], "sigma": EYE, "num": 1e300},
    "negative sigma": {"mu": EYE[0], "sigma": -EYE},
    "one negative eigenvalue": {"mu": EYE[0], "sigma": np.array([[1, 2, 0], [2, 1, 0], [0, 0, 1.0]])},
    "skew sigma": {"mu": EYE[0], "sigma": EYE + np.triu(np.ones([3, 3]), 1) * 0.1},
    "huge sigma": {"mu": EYE[0], "sigma": EYE * 1e300},
    "huge mu": {"mu": EYE[0] * 1e300, "sigma": EYE},
    "bomb": {"mu": np.zeros(6000, dtype=np.float32), "sigma": np.zeros([6000, 6000])},
}


@pytest.mark.parametrize("arrays", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_files_of_something_else_are_refused_by_name(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez_compressed(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=r"bad\.npz"):
        load_stats(tmp_path / "bad.npz")


def test_covariances_need_be_right_to_rounding_only(tmp_path: Path) -> None:
    """One of fewer images than dimensions, in float32 as some programs write it: eigenvalues at 0 and just below."""
    x = np.random.default_rng(0).normal(size=[10, 64])
    sigma = np.cov(x.T).astype(np.float32)
    sigma[3, 7] += 1e-6
    assert np.linalg.eigvalsh(sigma.astype(np.float64)).min() < 0
    np.savez(tmp_path / "ref.npz", mu=x.mean(axis=0), sigma=sigma)
    np.testing.assert_array_equal(load_stats(tmp_path / "ref.npz").cov, sigma)
    np.savez(tmp_path / "zero.npz", mu=np.zeros(4), sigma=np.zeros([4, 4]))
    assert load_stats(tmp_path / "zero.npz").cov.max() == 0


def test_damaged_and_missing_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    with pytest.raises(UserError, match=r"bad\.npz: there is no such file"):
        load_stats(path)
    np.savez_compressed(path, mu=np.zeros(50), sigma=np.random.default_rng(0).normal(size=[50, 50]))
    whole = path.read_bytes()
    flipped = whole[:2000] + bytes([whole[2000] ^ 255]) + whole[2001:]
    for data in (whole[:3000], flipped, b"", b"<html></html>", b"\x80\x04N."):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"bad\.npz"):
            load_stats(path)
