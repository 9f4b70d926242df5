"""Pickles open, with the right numbers, in tools that have NVlabs' loader and neither this project nor their networks.

The loader is a stand-in, written after the format's description: it runs the source that a file carries, in a process
in which this project cannot be imported.
"""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from stylegan_di.data import augment_edm
from stylegan_di.data.augment import augment_pipe
from stylegan_di.networks import edm, edm2, stylegan2, stylegan3
from stylegan_di.networks.refiner import Refiner
from stylegan_di.networks.stylegan2 import Discriminator, Generator
from stylegan_di.snapshots import portable
from stylegan_di.snapshots.checkpoint import save_snapshot
from stylegan_di.snapshots.formats import open_contents
from tests.golden_edm import NETWORKS, assert_near, load_arrays, load_weights

AFTER = "(lambda moved: ({call}, {value})[1])(deepcopy({of}).train())"  # a value that a call in train mode moves
SOURCES = [portable.edm, portable.edm2, portable.stylegan2, portable.stylegan3]
DENOISED = {
    "out64/D_sigmavec": "net(x, sigma_vec, labels)",
    "out64/D_nolabels": "net(x, sigma_vec)",
    "out64/D_aug": "net(x, sigma_vec, labels, augment_labels=augment_labels)",
    "round_out": "net.round_sigma(round_in)",
}
STYLEGAN2 = {
    "out64/ws_psi0.7_cut2": "net.mapping(z, c, truncation_psi=0.7, truncation_cutoff=2)",
    "out64/img_psi1_const": "net(z, c, noise_mode='const', force_fp32=True, update_emas=False)",
    "out64/img_psi0.5_const": "net(z, c, truncation_psi=0.5, noise_mode='const')",
    "out64/img_psi0.7_cut2_none": "net(z, c, 0.7, 2, noise_mode='none')",
    "w_avg_after_train_fwd64": AFTER.format(call="moved(z, c)", value="moved.w_avg", of="net.mapping"),
}
STYLEGAN3 = {
    "out64/ws_psi0.7_cut3": "net.mapping(z, c, truncation_psi=0.7, truncation_cutoff=3)",
    "out64/img_psi1": "net(z, c, noise_mode='const', force_fp32=True)",
    "out64/img_psi0.5": "net.synthesis(net.mapping(z, c, truncation_psi=0.5), update_emas=False)",
    "out64/emas/w_avg_1": AFTER.format(call="moved(z, c, update_emas=True)", value="moved.mapping.w_avg", of="net"),
    "out64/emas/magnitude_ema_1": AFTER.format(
        call="moved(z, c, update_emas=True)",
        value="torch.stack([getattr(moved.synthesis, name).magnitude_ema for name in moved.synthesis.layer_names])",
        of="net",
    ),
}
LOGITS = {"out64/logits": "net(img, c)"}
EDM2 = {
    "out64/D": "net(x, sigma, labels)",
    "out64/D_nolabels": "net(x, sigma)",
    "out64/logvar": "net(x, sigma, labels, return_logvar=True)[1]",
    "train_forced_norm64/unet.enc.8x8_block0.conv_res0.weight": AFTER.format(
        call="moved(x, sigma, labels)", value="moved.unet.enc['8x8_block0'].conv_res0.weight", of="net"
    ),
}
#: Golden networks -> the module of our class, and expressions for the numbers that NVlabs' code gave.
CASES: dict[str, tuple[ModuleType, dict[str, str]]] = {
    "sg2g_cond10_skip_map8": (stylegan2, STYLEGAN2),
    "sg2g_uncond_resnet_clamp": (stylegan2, STYLEGAN2),
    "sg2g_uncond_skip_fp16": (stylegan2, STYLEGAN2),
    "sg2g_uncond_skip_map2": (stylegan2, STYLEGAN2),
    "sg2d_cond10_resnet_map8": (stylegan2, LOGITS),
    "sg2d_uncond_resnet": (stylegan2, LOGITS),
    "sg3g_r_cond": (stylegan3, STYLEGAN3),
    "sg3g_t_uncond": (stylegan3, STYLEGAN3),
    **dict.fromkeys(NETWORKS, (edm, DENOISED)),
    "edm2_precond_cond6": (edm2, EDM2),
}

LOADER = '''
import copy, sys, types
import torch

_modules = {}


def _module(source):
    if source not in _modules:
        module = types.ModuleType(f"_source_of_a_file_{len(_modules)}")
        sys.modules[module.__name__] = module
        exec(source, module.__dict__)
        _modules[source] = module
    return _modules[source]


def _persistent(cls, source):
    class Decorated(cls):
        @property
        def init_kwargs(self):
            return copy.deepcopy(self._init_kwargs)

        def __reduce__(self):
            meta = dict(type="class", version=6, module_src=source, class_name=cls.__name__, state=self.__dict__)
            return _reconstruct_persistent_obj, (meta,)

    return Decorated


def _reconstruct_persistent_obj(meta):
    assert list(meta) == ["type", "version", "module_src", "class_name", "state"]
    assert (meta["type"], meta["version"]) == ("class", 6)
    cls = _persistent(getattr(_module(meta["module_src"]), meta["class_name"]), meta["module_src"])
    made = cls.__new__(cls)
    if isinstance(made, torch.nn.Module):
        made.__setstate__(meta["state"])
    else:
        made.__dict__.update(meta["state"])
    return made
'''
TOOL = """
import sys
sys.path.insert(0, ".")
sys.modules["stylegan_di"] = None  # cannot be imported
import copy, pickle
import torch

device, results = sys.argv[1], {}
for name, (inputs, expressions) in torch.load("calls.pt").items():
    with open(f"{name}.pkl", "rb") as file:
        data = pickle.load(file)
    assert data["provenance"]["kimg"] == 2.0 and type(data["provenance"]) is dict
    net = (data.get("G_ema") or data.get("ema") or data["D"]).to(device)
    inputs = {key: None if value is None else value.to(device) for key, value in inputs.items()}
    assert not net.training and not any(parameter.requires_grad for parameter in net.parameters())
    known = inputs | {"deepcopy": copy.deepcopy, "torch": torch, "data": data}
    with torch.no_grad():
        results[name] = {key: eval(text, known | {"net": net}) for key, text in expressions.items()}
        copied = known | {"net": copy.deepcopy(net)}
        again = {key: eval(text, copied) for key, text in expressions.items()}
    assert all(torch.equal(again[key], value) for key, value in results[name].items())
    results[name] = {key: value.cpu() for key, value in results[name].items()}
    net.cpu()
    with open(f"{name}-again.pkl", "wb") as file:
        pickle.dump(data, file)
torch.save(results, "results.pt")
"""


def golden(name: str) -> tuple[Any, dict[str, Tensor]]:
    """A golden network in float64, and its arrays."""
    arrays, info = load_arrays(name)
    network = getattr(CASES[name][0], info["cls"])(**info["init_kwargs"])
    load_weights(network, arrays)
    return network.double().eval(), arrays


def linear() -> tuple[Any, dict[str, Tensor]]:
    """iDDPM at linear levels, which NVlabs have not, and its input."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(img_resolution=8, img_channels=1, model_channels=8, channel_mult=[1], num_blocks=1)
    network = edm.DDPMPrecond(**sizes, attn_resolutions=[])
    torch.nn.init.normal_(network.model.out_conv.weight)  # type: ignore[union-attr, arg-type]
    return network.eval(), {"x": torch.randn(2, 1, 8, 8), "sigma": torch.tensor([0.3, 4.0])}


class Opened:
    """What the other tool found in our files: `results` by file and expression."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.folder = folder
        self.calls: dict[str, tuple[dict[str, Tensor | None], dict[str, str]]] = {}
        for name, (_, expressions) in CASES.items():
            network, arrays = golden(name)
            chosen = {key: text for key, text in expressions.items() if key in arrays}
            self.save(name, network, {key: value for key, value in arrays.items() if "/" not in key}, chosen)
        expressions = {"D": "net(x, sigma)", "p": "torch.tensor(data['augment_pipe'].p)"}
        self.save("linear", *linear(), expressions, augment_pipe=augment_edm.AugmentPipe(p=0.25))
        network, arrays = golden("sg2g_uncond_skip_map2")
        expressions = {"image": "(torch.manual_seed(3), net(z, c))[1]", "p": "data['augment_pipe'].p"}
        self.save("noisy", network, {"z": arrays["z"]}, expressions, augment_pipe=augment_pipe("bgc"))
        torch.save(self.calls, folder / "calls.pt")
        (folder / "torch_utils").mkdir()
        (folder / "torch_utils" / "persistence.py").write_text(LOADER)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        result = subprocess.run([sys.executable, "-I", "-W", "error", "-c", TOOL, device], cwd=folder, env=environment,
                                capture_output=True, text=True, timeout=600, check=False)  # fmt: skip
        assert result.returncode == 0, result.stderr[-3000:]
        self.results: dict[str, dict[str, Tensor]] = torch.load(folder / "results.pt")

    def save(
        self, name: str, network: Any, inputs: dict[str, Tensor], expressions: dict[str, str], **others: Any
    ) -> None:
        entry = {Generator: "G_ema", stylegan3.Generator: "G_ema", Discriminator: "D"}.get(type(network), "ema")
        modules = {entry: network} | {key: part for key, part in others.items() if isinstance(part, torch.nn.Module)}
        extras = {key: part for key, part in others.items() if key not in modules}
        save_snapshot(self.folder / f"{name}.pkl", modules, extras=extras, metadata={"kimg": 2.0})
        self.calls[name] = {"c": None, "labels": None} | inputs, expressions


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return Opened(tmp_path_factory.mktemp("tool"))


@pytest.mark.parametrize("name", CASES)
def test_a_file_gives_nvlabs_numbers_elsewhere(name: str, opened: Opened) -> None:
    arrays = load_arrays(name)[0]
    assert len(opened.results[name]) >= (1 if name.startswith("sg2d") else 2)
    for key, value in opened.results[name].items():
        assert_near(value, arrays[key], 1e-10)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_files_give_nvlabs_numbers_on_a_gpu(tmp_path: Path) -> None:
    """In float64 throughout, except for the one network with float16 layers."""
    results = Opened(tmp_path, "cuda").results
    for name in CASES:
        arrays = load_arrays(name)[0]
        for key, value in results[name].items():
            assert_near(value, arrays[key], 2e-2 if "fp16" in name else 1e-9)


def test_a_file_gives_our_numbers_elsewhere(opened: Opened) -> None:
    """What there are no golden numbers for: levels of our own, noise by the global generator, augmentation's state."""
    network, inputs = linear()
    with torch.no_grad():
        torch.testing.assert_close(opened.results["linear"]["D"], network(**inputs), rtol=1e-5, atol=1e-5)
        network, arrays = golden("sg2g_uncond_skip_map2")
        torch.manual_seed(3)
        torch.testing.assert_close(opened.results["noisy"]["image"], network(arrays["z"], None), rtol=1e-9, atol=1e-9)
    assert (opened.results["noisy"]["p"], opened.results["linear"]["p"]) == (1, 0.25)


def test_what_the_other_tool_writes_is_read_here(opened: Opened) -> None:
    for name in ("sg2g_cond10_skip_map8", "sg3g_t_uncond", "edm_adm_cond10_aug9", "edm2_precond_cond6", "noisy"):
        first, again = (open_contents(opened.folder / f"{name}{suffix}.pkl") for suffix in ("", "-again"))
        assert again.is_intact()
        assert again.embedded == first.embedded
        assert again.metadata == {"kimg": 2.0}
        assert [part.init_kwargs for part in again.blueprints.values() if part] == [
            part.init_kwargs for part in first.blueprints.values() if part
        ]


@pytest.mark.parametrize("module", SOURCES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_sources_need_nothing_but_old_python_and_pytorch(module: ModuleType) -> None:
    source = inspect.getsource(module)
    tree = ast.parse(source, feature_version=(3, 7))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= {"__future__", "math", "typing", "torch", "torch.nn.functional"}
    assert "Apache-2.0" in source


def test_networks_that_no_other_tool_has_name_this_project() -> None:
    assert portable.portable_source(Refiner) == "from stylegan_di.networks.refiner import Refiner\n"
    assert portable.nvlabs_source(Refiner, "stylegan3") == "from stylegan_di.networks.refiner import Refiner\n"
