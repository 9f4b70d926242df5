"""New networks as students: a decoder, a flow with its exact likelihood, and a radiance field seen by cameras."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stylegan_di.interfaces import Denoiser
from stylegan_di.loss_di import IKL, Noised
from stylegan_di.networks.decoder import Decoder
from stylegan_di.networks.edm_layers import with_labels
from stylegan_di.networks.flow import Flow
from stylegan_di.networks.radiance import RadianceField
from stylegan_di.snapshots.checkpoint import load_generator
from stylegan_di.students import STUDENTS
from tests.gaussians import GaussianDenoiser
from tests.test_resume import SHORT, assert_same_run, invoke, killed_run, whole_run
from tests.tiny import save_files

pytestmark = pytest.mark.usefixtures("small_grids")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_files(tmp_path_factory.mktemp("files"))


def test_a_decoder_knows_its_sizes() -> None:
    assert Decoder(4, 3, 0, width=8)(torch.randn(2, 64)).shape == (2, 3, 4, 4)
    assert Decoder(32, 1, 2, z_dim=5, width=8)(torch.randn(2, 5), torch.eye(2)).shape == (2, 1, 32, 32)
    for resolution, width in ((12, 8), (2, 8), (8, 12)):
        with pytest.raises(ValueError, match="is not 4 times a power of two"):
            Decoder(resolution, 1, 0, width=width)


def test_a_class_is_as_long_as_the_numbers_before_it() -> None:
    x, labels = torch.zeros(2, 3, 16, dtype=torch.float64), torch.eye(5)[[1, 4]][:, None].expand(-1, 3, -1)
    found = with_labels(x, labels)
    assert found.shape == (2, 3, 21)
    torch.testing.assert_close(found.norm(dim=2), torch.full([2, 3], 4.0, dtype=torch.float64))
    assert torch.equal(found[0, 0].nonzero(), torch.tensor([[17]]))
    assert with_labels(x, None) is x


# The flow.


def flow(label_dim: int) -> Flow:
    """Of 2x4x4 numbers, with weights far from the start."""
    torch.manual_seed(0)
    made = Flow(4, 2, label_dim, depth=3, width=8).double()
    for parameter in made.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return made


@pytest.mark.parametrize("label_dim", [0, 3])
def test_the_likelihood_is_that_of_the_change_of_variables(label_dim: int) -> None:
    """log p(f(z)) = log N(z; 0, I) - log |det df/dz|, the determinant by automatic differentiation."""
    network = flow(label_dim)
    z = torch.randn(3, 32, dtype=torch.float64)
    labels = torch.eye(3, dtype=torch.float64) if label_dim else None
    found = network.log_likelihood(network(z, labels), labels)
    for index in range(3):
        own = None if labels is None else labels[index : index + 1]
        jacobian = torch.autograd.functional.jacobian(lambda x, own=own: network(x[None], own).flatten(), z[index])
        expected = -0.5 * (z[index].square() + math.log(2 * math.pi)).sum() - torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(found[index], expected)


def test_the_densities_of_a_flow_integrate_to_one() -> None:
    """Importance sampling with a wider Gaussian; two numbers, so that it is precise."""
    torch.manual_seed(1)
    network = Flow(1, 2, 0, depth=4, width=8).double()
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    with torch.no_grad():
        samples = network(torch.randn(4000, 2, dtype=torch.float64)).flatten(1)
        center, spread = samples.mean(dim=0), 1.5 * samples.std(dim=0)
        x = center + spread * torch.randn(200000, 2, dtype=torch.float64)
        log_q = (-0.5 * (((x - center) / spread).square() + math.log(2 * math.pi)) - spread.log()).sum(dim=1)
        ratio = (network.log_likelihood(x[:, :, None, None]) - log_q).exp()
    assert float(ratio.mean()) == pytest.approx(1, abs=0.02)


# The radiance field.


class Ball(RadianceField):
    """One opaque ball in an empty cube, brighter the more to the right a point is."""

    center = (0.5, -0.25, 0.3)

    def field(self, points: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        inside = (points - points.new_tensor(self.center)).norm(dim=2) < 0.3
        return 1e4 * inside, torch.full_like(points[..., :1], 0.8)


def latent(angle: float, largest: float) -> Tensor:
    """The latent of a camera at an angle in degrees."""
    return torch.erfinv(torch.tensor([[angle / largest]], dtype=torch.float64)) * math.sqrt(2)


@pytest.mark.parametrize("angle", [-40.0, 0.0, 25.0])
def test_all_cameras_see_the_same_object(angle: float) -> None:
    """The ball is where its centre is projected to, and as large from everywhere."""
    network = Ball(64, 1, 0, width=8, depth=64, angle=60).double()
    image = network(latent(angle, 60))[0, 0]
    seen = (image > 0).double()
    across = (torch.arange(64, dtype=torch.float64) + 0.5) / 32 - 1
    x, y, z = Ball.center
    turn = math.radians(angle)
    assert float((seen.sum(0) * across).sum() / seen.sum()) == pytest.approx(
        x * math.cos(turn) - z * math.sin(turn), abs=0.02
    )
    assert float((seen.sum(1) * across).sum() / seen.sum()) == pytest.approx(y, abs=0.02)
    assert float(seen.mean()) == pytest.approx(math.pi * 0.3**2 / 4, rel=0.06)
    torch.testing.assert_close(image[seen > 0], torch.full_like(image[seen > 0], 0.6))
    torch.testing.assert_close(image[seen == 0], torch.full_like(image[seen == 0], -1.0))


def test_cameras_are_uniform_within_the_angle_or_all_in_front() -> None:
    torch.manual_seed(0)
    z = torch.randn(20000, 1)
    turned = math.radians(30) * torch.erf(z[:, 0] / math.sqrt(2))
    assert float(turned.abs().max()) <= math.radians(30)
    assert torch.histc(turned, 10).std() / 2000 < 0.05
    front = RadianceField(8, 1, 3, width=8, depth=4, angle=0)
    images = front(torch.randn(5, 1), torch.eye(3)[[0, 0, 1, 1, 1]])
    torch.testing.assert_close(images[0], images[1])
    assert not torch.allclose(images[0], images[2])


def test_a_thin_medium_is_rendered_as_in_closed_form() -> None:
    """Constant density d and colour c: 1 - exp(-2 d) of the light of c is seen through a cube of depth 2."""

    class Fog(RadianceField):
        def field(self, points: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
            return torch.full_like(points[..., 0], 0.7), torch.full_like(points, 0.5)

    image = Fog(4, 3, 0, width=8, depth=9)(torch.zeros(1, 1))
    torch.testing.assert_close(image, torch.full_like(image, 2 * 0.5 * (1 - math.exp(-1.4)) - 1))


class PointMass(Denoiser):
    """The exact fake score of a student that makes one image."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.x.expand_as(x)


def test_with_a_point_mass_the_gradient_is_that_of_score_distillation() -> None:
    """A camera's render is one image: with its exact fake score IKL is w (eps_p - eps) (arXiv 2209.14988, eq. 3),
    here with w = sigma."""
    x = RadianceField(8, 1, 0, width=8, depth=4)(torch.zeros(1, 1)).detach().double()
    teacher, sigma = GaussianDenoiser(0.2, 0.4), torch.tensor([0.1, 0.7, 3.0], dtype=torch.float64)
    leaf = x.expand(3, -1, -1, -1).clone().requires_grad_()
    noise = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    at = Noised(leaf, noise, sigma, None, teacher, PointMass(x))
    (gradient,) = torch.autograd.grad(IKL().student_loss(at).sum(), leaf)
    level = sigma[:, None, None, None]
    noisy = leaf.detach() + level * noise
    predicted = (noisy - teacher(noisy, sigma)) / level
    torch.testing.assert_close(gradient, level * (predicted - noise))


# Runs.


@pytest.mark.parametrize(
    "spec", ["decoder:z_dim=4,width=8", "flow:depth=2,width=8", "radiance:width=8,depth=4,angle=10"]
)
def test_a_run_goes_on_exactly_and_its_file_is_the_student(files: dict[str, str], tmp_path: Path, spec: str) -> None:
    arguments = [
        "--kind=di",
        f"--student={spec}",
        f"--teacher={files['teacher']}",
        "--metrics=none",
        "--tick=0.016",
        *SHORT,
    ]
    undisturbed = whole_run(tmp_path / "whole", *arguments)
    folder = killed_run(tmp_path / "killed", 5, *arguments)
    assert invoke("--resume=latest", f"--outdir={tmp_path / 'killed'}").exit_code == 0
    assert_same_run(undisturbed, folder)
    found = load_generator(folder / "network-snapshot-000000.pkl")
    assert type(found) is STUDENTS[spec.partition(":")[0]]
    assert found.draw([1, 2], class_index=2).shape == (2, 1, 8, 8)


def test_what_cannot_be(files: dict[str, str]) -> None:
    teacher = f"--teacher={files['teacher']}"
    for given, told in [
        (["--student=decoder:width=9"], "resolution 8 is not 4 times a power of two, or width 9 not of 8"),
        (
            ["--student=flo"],
            "--student=flo: there is no 'flo'; accepted: auto, refiner, decoder, flow, radiance; did you mean",
        ),
        (["--student=flow:depth=0"], "depth=0; accepted: a number from 1 to 256 that is whole"),
        (["--student=flow", f"--gan-pkl={files['gan']}"], "--student=flow is a new network: leave --gan-pkl="),
        (["--student=flow", "--sigma-init=1"], "--sigma-init=1 has no effect with --student=flow"),
    ]:
        result = invoke("--kind=di", teacher, "--metrics=none", *SHORT, *given)
        assert (result.exit_code, told in result.output) == (2, True), result.output
