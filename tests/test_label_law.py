"""How often each label occurs: as in the data, in what is trained, kept, measured and drawn."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import calc_metrics
from stylegan_di.commands.train import new_config
from stylegan_di.config import TrainConfig
from stylegan_di.data.dataset import ImageDataset
from stylegan_di.dnnlib.util import UserError
from stylegan_di.explore.comparison import compare
from stylegan_di.labels import LabelLaw, one_hot
from stylegan_di.metrics.evaluate import Evaluator
from stylegan_di.metrics.extractors import open_extractor
from stylegan_di.metrics.features import generated_images
from stylegan_di.metrics.statistics import load_stats, save_stats
from stylegan_di.random import SampleRandom
from stylegan_di.snapshots.checkpoint import load_generator, load_snapshot, save_snapshot
from stylegan_di.students.stylegan2 import StyleGAN2Student
from stylegan_di.training import label_laws, methods
from stylegan_di.training.batch import generated
from tests.test_generate import run as generate
from tests.test_resume import TINY_GAN, whole_run
from tests.tiny import gan_networks, save_dataset, save_gan, save_reference, save_teacher

UNEVEN = LabelLaw.of_counts([6, 0, 2])
VECTORS = np.array([[0.2, 0.7], [0.2, 0.7], [-1, 3]], dtype=np.float32)


def labels_of(law: LabelLaw, n: int = 4000) -> torch.Tensor:
    return law.draw(SampleRandom(0, "some", 0, range(n)))


def relabel(folder: Path, labels: list[Any]) -> Path:
    """Gives the images of a data set these labels in turn."""
    names = [name for name, _ in json.loads((folder / "dataset.json").read_text())["labels"]]
    pairs = [[name, labels[index % len(labels)]] for index, name in enumerate(names)]
    (folder / "dataset.json").write_text(json.dumps({"labels": pairs}))
    return folder


def method_of(*, kind: str = "gan", **given: Any) -> Any:
    known: dict[str, Any] = dict.fromkeys(("gan_pkl", "teacher", "cfg", "gpus"))
    config = new_config(kind, "cpu", **(known | {"batch": 4, "kimg": 0.004} | given))
    return methods.build(config, torch.device("cpu"))


def test_equal_counts_draw_what_uniform_classes_draw() -> None:
    """The random numbers are the same, so a training on balanced data has the bits that it has without them."""
    rngs = [SampleRandom(0, "some", 0, range(50)) for _ in range(3)]
    plain = one_hot(rngs[0].integers(3), 3)
    assert torch.equal(LabelLaw.uniform(3).draw(rngs[1]), plain)
    assert torch.equal(LabelLaw.of_counts([40, 40, 40]).draw(rngs[2]), plain)


def test_labels_are_as_frequent_as_the_counts_say() -> None:
    share = labels_of(UNEVEN).mean(dim=0)
    assert share[1] == 0
    assert share[0] == pytest.approx(0.75, abs=0.03)  # four deviations of the mean of 4,000
    law = LabelLaw.of_labels(VECTORS, 2)
    drawn = labels_of(law)
    assert {tuple(row) for row in drawn.tolist()} == {tuple(row) for row in VECTORS.tolist()}
    assert (drawn[:, 0] > 0).float().mean() == pytest.approx(2 / 3, abs=0.03)
    assert (str(UNEVEN), UNEVEN.empty) == (
        "3 classes, from 25.00% to 75.00% of the images; no image is of class 1",
        [1],
    )


def test_one_hot_vectors_are_classes_and_digits_are_numbers() -> None:
    law = LabelLaw.of_labels(np.eye(3, dtype=np.float32)[[0, 2, 2]], 3, ["2", "0-1", "x"])
    assert (law.counts.tolist(), law.vectors) == ([1, 0, 2], None)
    assert (law.classes("2"), law.classes("0-1"), law.classes("0,X")) == ([2], [1], [0, 2])


def test_a_law_is_read_back_and_what_is_none_is_refused() -> None:
    for law in (UNEVEN, LabelLaw.of_labels(VECTORS, 2), LabelLaw.uniform(2, ["a", "b"])):
        found = LabelLaw.of_entry(json.loads(json.dumps(law.entry())), law.label_dim)
        assert torch.equal(labels_of(found, 20), labels_of(law, 20))
        assert (found.names, found.is_guess) == (law.names, law.is_guess)
    many = LabelLaw.of_labels(np.arange(200_000, dtype=np.float32).reshape(-1, 2), 2)
    assert len(many.entry()["vectors"]) * 2 <= 1 << 16
    for entry in ([], {"counts": [-1, 2]}, {"counts": [0, 0]}, {"counts": [1.5, 1]}, {"counts": [1, 1, 1]},
                  {"counts": [1, 1], "class_names": ["a"]}, {"counts": [1, 1], "class_names": ["a", "\x1b[2J"]},
                  {"counts": [1], "vectors": [[1, float("nan")]]}):  # fmt: skip
        with pytest.raises(ValueError, match=r"labels|class names"):
            LabelLaw.of_entry(entry, 2)


@pytest.mark.parametrize("labels", [[0, 0, 0, 2], [[0.2, 0.7], [0.2, 0.7], [0.2, 0.7], [-1, 3]]])
def test_a_gan_is_trained_measured_and_kept_with_the_labels_of_its_data(tmp_path: Path, labels: list[Any]) -> None:
    """Three quarters of the images have the first label, and class 1 has none. Run to the end, in a folder."""
    data = relabel(save_dataset(tmp_path / "data"), labels)
    arguments = ["--kind=gan", f"--data={data}", "--cond=true", "--device=cpu", "--batch=4", "--kimg=0.008", *TINY_GAN,
                 "--metrics=none"]  # fmt: skip
    folder = whole_run(tmp_path / "runs", *arguments)
    dataset = ImageDataset(data, use_labels=True)
    assert f"labels          {dataset.label_law()}, as in --data" in (folder / "log.txt").read_text()
    (snapshot,) = folder.glob("network-snapshot-*.pkl")
    gan = load_generator(snapshot)
    batches = generated_images(gan, num=2000, batch=2000)
    if isinstance(labels[0], int):
        assert "no image is of class 1" in (folder / "log.txt").read_text()
        assert np.bincount(batches.labels(), minlength=3) / 2000 == pytest.approx([0.75, 0, 0.25], abs=0.04)
        drawn = [gan.latents_of([seed])[1].argmax().item() for seed in range(20)]
        assert set(drawn) == {0, 2}
    else:
        assert batches.classes is None
        assert (gan.latents_of(range(20))[1][:, 0] > 0).float().mean() > 0.5
        written = generate(f"--network={snapshot}", f"--outdir={tmp_path / 'out'}", "--seeds=1", "--label=-1,3")
        assert written.exit_code == 0, written.output
    mean = gan.sample_labels(rng=SampleRandom(1, "some", 0, range(400))).mean(dim=0)
    assert mean.numpy() == pytest.approx(np.mean([dataset[i][1] for i in range(24)], axis=0), abs=0.1)


def test_data_free_labels_are_those_of_the_file_else_of_the_reference_else_uniform(tmp_path: Path) -> None:
    teacher = str(save_teacher(tmp_path / "teacher.pkl"))
    save_snapshot(tmp_path / "known.pkl", gan_networks(), extras={"label_law": UNEVEN.entry()}, metadata={})
    plain = str(save_gan(tmp_path / "plain.pkl"))
    save_stats(
        tmp_path / "ref.npz", load_stats(save_reference(tmp_path / "r.npz")), {"label_counts": np.array([5, 5, 10])}
    )
    common = dict(kind="di", teacher=teacher, metrics=("fd_fashion",))
    for given, counts, said in (
        (dict(gan_pkl=str(tmp_path / "known.pkl"), ref=str(tmp_path / "ref.npz")), [3, 0, 1], "as the network's file"),
        (dict(gan_pkl=plain, ref=str(tmp_path / "ref.npz")), [1, 1, 2], "as in the reference statistics"),
        (dict(gan_pkl=plain, metrics=()), [1, 1, 1], "how often they occur in the data is not known"),
    ):
        method = method_of(**(common | given))
        assert method.model.label_law.counts.tolist() == method.ema.label_law.counts.tolist() == counts
        assert said in method.labels_note
    assert method.label_entry() == {}
    config = TrainConfig("di", teacher=teacher, gan_pkl=plain, data="teacher:8", critic="features", metrics=())
    method.model.known_labels = UNEVEN
    law, said = label_laws.choose(config, None, method.model)
    assert law is not None
    assert (law.counts.tolist(), said) == ([1, 1, 1], "3 classes, equally often, as among the teacher's samples")


def test_teachers_hand_on_their_labels_when_they_are_distilled(tmp_path: Path) -> None:
    path = save_teacher(tmp_path / "teacher.pkl")
    networks = load_snapshot(path).networks
    save_snapshot(path, networks, extras={"dataset_kwargs": {}, "label_law": UNEVEN.entry()}, metadata={})
    method = method_of(kind="di", teacher=str(path), metrics=())
    batch = methods.base.Batch.of_step(
        seed=0, nimg=0, size=64, batch_gpu=64, rank=0, world_size=1, device=torch.device("cpu")
    )
    _, labels = generated(method.model, batch, batch.chunks[0], "student")
    assert labels is not None
    assert (labels.sum(dim=0) > 0).tolist() == [True, False, True]
    written = method.extras({}) | method.label_entry()
    save_snapshot(tmp_path / "student.pkl", method.entries(), extras=written, metadata={})
    assert load_generator(tmp_path / "student.pkl").label_law.counts.tolist() == [3, 0, 1]
    bad = gan_networks(), {"label_law": {"counts": [1, 2]}}
    save_snapshot(tmp_path / "bad.pkl", bad[0], extras=bad[1], metadata={})
    with pytest.raises(UserError, match=r"bad\.pkl.*labels of 2 classes and 0 names, for a network of 3"):
        load_generator(tmp_path / "bad.pkl")


def test_metrics_of_a_file_that_says_nothing_draw_the_labels_of_the_data(tmp_path: Path) -> None:
    data, gan = relabel(save_dataset(tmp_path / "data"), [0, 0, 2]), save_gan(tmp_path / "gan.pkl")
    arguments = [f"--network={gan}", f"--data={data}", "--metrics=fd_fashion", "--num=40", "--device=cpu"]
    result = CliRunner().invoke(calc_metrics.main, arguments)
    assert "labels are drawn as they are in the reference: 3 classes, from 33.33% to 66.67%" in result.output
    generator = load_generator(gan)
    plain = Evaluator(["fd_fashion"], data, 40)(generator)
    generator.known_labels = LabelLaw.of_counts([2, 0, 1])
    expected = Evaluator(["fd_fashion"], data, 40)(generator)["fd_fashion"]
    assert expected != pytest.approx(plain["fd_fashion"], rel=1e-3)
    assert f"fd_fashion  {expected:.6g}" in result.output


def test_what_looks_at_vector_labels_takes_those_of_the_data() -> None:
    student = StyleGAN2Student(gan_networks(c_dim=2)["G_ema"])  # type: ignore[arg-type]
    student.known_labels = LabelLaw.of_labels(VECTORS, 2)
    found = compare(student, student, open_extractor("fashion"), num=4, seed=0)
    labels = student.sample_labels(rng=SampleRandom(0, "compare labels", 0, range(4)))
    z = student.sample_latents(4, rng=SampleRandom(0, "compare", 0, range(4)))
    torch.testing.assert_close(found.old, student(z, labels).clamp(-1, 1))
    with pytest.raises(UserError, match="--class=0: this network's labels are vectors of 2 numbers; give --label"):
        student.label_law.classes("0")


def test_truncation_towards_a_class_keeps_the_classes_apart() -> None:
    gan = load_generator("fashion-gan.pkl")
    mean = gan.with_options(trunc=0.0)
    assert torch.equal(mean.draw([0], class_index=8), mean.draw([0], class_index=1))
    own = gan.with_options(trunc=0.0, trunc_mode="class")
    assert torch.equal(own.draw([0], class_index=8), own.draw([1], class_index=8))
    assert (own.draw([0], class_index=8) - own.draw([0], class_index=1)).abs().mean() > 0.1
    half = gan.with_options(trunc=0.5, trunc_mode="class")
    ws, centre = gan.mapped([3], class_index=8), own.mapped([3], class_index=8)
    torch.testing.assert_close(half.mapped([3], class_index=8), centre.lerp(ws, 0.5))
    z = gan.sample_latents(1, rng=SampleRandom(0, "some", 0, [0]))
    torch.testing.assert_close(own(z, torch.eye(10)[8:9]), own.draw([0], class_index=8))
    for options, message in (({}, "needs --trunc, such as 0.7"), ({"trunc": 1.0}, "needs --trunc")):
        with pytest.raises(UserError, match=f"--trunc-mode=class {message}"):
            gan.with_options(trunc_mode="class", **options)
