"""Reference files of EDM, of stylegan2-ada's cache and of EDM2, read without executing anything."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stylegan_di.dnnlib.untrusted import Budget
from stylegan_di.dnnlib.util import UserError
from stylegan_di.metrics import references
from stylegan_di.metrics.frechet import frechet_distance
from stylegan_di.metrics.references import load_references, stats_of_cache

GOLDEN = Path(__file__).parent / "golden" / "metrics"


def cache(features: np.ndarray, *, keep: bool, sums: bool) -> dict[str, Any]:
    """stylegan2-ada's FeatureStats.__dict__ after these features, in batches of 64."""
    wide = features.astype(np.float64)
    return {
        "capture_all": keep, "capture_mean_cov": sums, "max_items": len(features), "num_items": len(features),
        "num_features": features.shape[1],
        "all_features": [features[i : i + 64] for i in range(0, len(features), 64)] if keep else None,
        "raw_mean": wide.sum(axis=0) if sums else None, "raw_cov": wide.T @ wide if sums else None,
    }  # fmt: skip


@pytest.mark.parametrize(("keep", "sums"), [(True, False), (False, True), (True, True)])
def test_stylegan2_adas_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool, sums: bool) -> None:
    golden = np.load(GOLDEN / "sg2_metrics.npz")
    monkeypatch.setitem(references._BY_DIM, 24, "inception")
    path = tmp_path / "cifar10-inception.pkl"
    path.write_bytes(pickle.dumps(cache(golden["gen"], keep=keep, sums=sums)))
    stats = load_references(path)["inception"]
    np.testing.assert_allclose(stats.mean, golden["mu_gen"], rtol=1e-12)
    np.testing.assert_allclose(stats.covariance(ddof=0), golden["cov_gen"], rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(stats.cov, np.cov(golden["gen"].astype(np.float64).T), rtol=1e-10, atol=1e-13)
    assert stats.num == 257
    if keep:
        np.testing.assert_array_equal(stats.features, golden["gen"])
    else:
        assert stats.features is None


def test_the_first_290_images() -> None:
    """max_items ends NVlabs' counting in the middle of a batch."""
    golden = np.load(GOLDEN / "sg2_metrics.npz")
    stats = stats_of_cache(cache(golden["real"][:290], keep=False, sums=True), Budget(0))
    np.testing.assert_allclose(stats.mean, golden["mu_real_first290"], rtol=1e-12)
    np.testing.assert_allclose(stats.covariance(ddof=0), golden["cov_real_first290"], rtol=1e-11, atol=1e-13)


def test_edm2s_file_holds_two(tmp_path: Path) -> None:
    golden = np.load(GOLDEN / "edm_fid.npz")
    path = tmp_path / "img64.pkl"
    fid = {"mu": golden["mu_ref"], "sigma": golden["sigma_ref"]}
    path.write_bytes(pickle.dumps({"fid": fid, "fd_dinov2": {"mu": np.zeros(3), "sigma": np.eye(3)}}))
    found = load_references(path)
    assert list(found) == ["inception", "dinov2"]
    np.testing.assert_array_equal(found["dinov2"].cov, np.eye(3))
    stats = found["inception"]
    assert frechet_distance(golden["mu"], golden["sigma"], stats.mean, stats.cov) == pytest.approx(
        13.730038141452237, rel=1e-10
    )


def test_edms_file(tmp_path: Path) -> None:
    golden = np.load(GOLDEN / "edm_fid.npz")
    np.savez(tmp_path / "ref.npz", mu=golden["mu_ref"], sigma=golden["sigma_ref"])
    (stats,) = load_references(tmp_path / "ref.npz").values()
    np.testing.assert_array_equal(stats.cov, golden["sigma_ref"])


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize(
    "content",
    [
        {"a": 1},
        [1, 2],
        {"fid": {"mu": np.zeros(3)}},
        {"fid": 3},
        {"fid": {"mu": np.zeros(3), "sigma": np.eye(4)}},
        {"fid": {"mu": np.full(3, np.nan), "sigma": np.eye(3)}},
        cache(np.ones([1, 3], dtype=np.float32), keep=True, sums=True),
        cache(np.ones([9, 3], dtype=np.float32), keep=False, sums=False),
        cache(np.ones([9, 3], dtype=np.float32), keep=True, sums=False) | {"num_items": 8},
        cache(np.ones([9, 3], dtype=np.float32), keep=True, sums=False) | {"all_features": None},
        cache(np.ones([9, 3], dtype=np.float32), keep=True, sums=False)
        | {"num_items": 9 * 10**5, "all_features": [np.ones([900, 3], dtype=np.float32)] * 10**5},
        cache(np.ones([2, 9000], dtype=np.float32), keep=True, sums=False),
        {"capture_all": True},
        {"fid": Hostile()},
    ],
)  # fmt: skip
def test_other_contents_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"a\.pkl"):
        load_references(path)
    assert not Path("executed").exists()
