"""Writes a viewer's page that runs its networks in the browser, by ONNX Runtime compiled to WebAssembly.

A folder has the files beside the page, for any web server. A single .html has them inside, compressed, because a page
that is opened from disk may read no other file. Nothing is fetched from elsewhere: the page forbids it to itself.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stylegan_di.dnnlib.cli import writable_folder
from stylegan_di.dnnlib.util import UserError, atomic_write
from stylegan_di.explore.projection import noise_maps, render
from stylegan_di.explore.viewer.looks import Viewer
from stylegan_di.explore.viewer.page import asset, page
from stylegan_di.interfaces import Generator
from stylegan_di.networks import r3gan, stylegan2, stylegan3
from stylegan_di.snapshots.onnx import to_onnx

ORT_VERSION = "1.30.0"  # with which the page is tested
ORT_FOLDER = Path("node_modules/onnxruntime-web/dist")
ORT_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
MAX_TOTAL = 1 << 32  # of a label law: for more, numpy draws two words
GRAPHS = ("a.onnx", "b.onnx")


class Blend(torch.nn.Module):
    """The picture of a look and its w, with everything that a page can change as an input.

    Args:
        network: a StyleGAN2's or StyleGAN3's generator.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, z: Tensor, amounts: Tensor, psi: Tensor, noise: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the image [1,C,R,R] and ws [1,num_ws,w_dim].

        z [2,z_dim] and labels [2,label_dim] are of the two seeds; amounts [num_ws] is how far each style goes from the
        first to the second, psi [] the truncation, and noise [] the factor on the network's fixed noise.
        """
        ws = self.network.mapping(z, labels)
        if self.network.mapping.w_avg_beta is not None:
            ws = self.network.mapping.w_avg.lerp(ws, psi)
        ws = ws[:1].lerp(ws[1:], amounts[:, None])
        return render(self.network, ws, {name: own * noise for name, own in noise_maps(self.network).items()}), ws

    def inputs(self) -> dict[str, Tensor]:
        """Examples of the inputs, by name."""
        z_dim, label_dim, num_ws = self.network.z_dim, self.network.c_dim, self.network.num_ws
        labels = {"labels": torch.eye(2, label_dim)} if label_dim else {}
        numbers = {"amounts": torch.zeros(num_ws), "psi": torch.ones([]), "noise": torch.ones([])}
        return {"z": torch.ones(2, z_dim)} | numbers | labels


def export(viewer: Viewer, dest: Path, ort: Path) -> str:
    """Writes the page, and returns what to tell the user.

    Args:
        viewer: on the CPU.
        dest: a name that ends in .html, or else a folder.
        ort: the folder with onnxruntime-web's files.

    Raises:
        UserError: if a network is no StyleGAN or R3GAN, or a file is missing or cannot be written.
    """
    for name, generator in zip(viewer.names, viewer.generators, strict=True):
        if not isinstance(generator.network, stylegan2.Generator | stylegan3.Generator | r3gan.Generator):
            raise UserError(
                f"--export={dest}: {name} is a {generator.kind}, and a page can hold StyleGAN2, StyleGAN3 and R3GAN "
                "networks; leave --export out to look at it here"
            )
    files = {name: _runtime(ort, name) for name in ORT_FILES}
    single = dest.suffix.lower() in (".html", ".htm")
    if single and dest.is_dir():
        raise UserError(f"--export={dest} is a folder; give a file that ends in .html, or a folder that does not")
    writable_folder(f"--export={dest}", dest.parent if single else dest)
    graphs = dict(zip(GRAPHS, viewer.generators, strict=False))
    for (name, generator), source in zip(graphs.items(), viewer.names, strict=True):
        files[name] = _graph(generator, viewer.num_ws > 0, {"converted_from": source})
    described = viewer.described()
    for network, generator in zip(described["networks"], viewer.generators, strict=True):
        network["given"] = network["name"]  # which folder it lay in is nobody else's concern
        network |= _label_law(generator, f"--export={dest}: {network['name']}")
    if not viewer.num_ws:
        described |= {"trunc": False, "noise": []}  # which only a Blend has as inputs
    described |= {
        "noise": [mode for mode in described["noise"] if mode != "random"],  # which only numpy's generator can draw
        "z": viewer.generators[0].network.z_dim, "graphs": list(graphs), "runtime": list(ORT_FILES),
    }  # fmt: skip
    data = f'<script type="text/plain" id="worker">{asset("worker.js")}</script>\n'
    if single:
        data += "".join(_embedded(name, content) for name, content in files.items())
        atomic_write(dest, page(described, engine="onnx", data=data).encode())
        return f"{dest}: {dest.stat().st_size:,} bytes; it opens from disk"
    for name, content in files.items():
        atomic_write(dest / name, content)
    atomic_write(dest / "index.html", page(described, engine="onnx", data=data).encode())
    return f"{dest}: put it on a web server, or try it: python -m http.server --bind 127.0.0.1 --directory {dest}"


def _graph(generator: Generator, styles: bool, metadata: Mapping[str, str]) -> bytes:
    """A `Blend`, or without styles the images of z and labels."""
    if not styles:
        return to_onnx(generator, metadata)
    blend = Blend(generator.network)
    return to_onnx(blend, metadata, inputs=blend.inputs(), outputs=("images", "ws"))


def _label_law(generator: Generator, what: str) -> dict[str, Any]:
    """What a seed without a class draws from: see `LabelLaw.ends` and `vectors`."""
    law = generator.label_law.by_seed
    if law.total > MAX_TOTAL:
        raise UserError(f"{what} has labels of {law.total} positions; a page can draw from {MAX_TOTAL}")
    return {"ends": law.ends, "vectors": None if law.vectors is None else law.vectors.tolist()}


def _embedded(name: str, content: bytes) -> str:
    packed = base64.b64encode(gzip.compress(content, mtime=0)).decode()
    return f'<script type="application/gzip" data-file="{name}">{packed}</script>\n'


def _runtime(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise UserError(
            f"--ort={folder}: {name} cannot be read ({error.strerror}). The page needs ONNX Runtime for browsers: npm "
            f"install onnxruntime-web@{ORT_VERSION}, then --ort=node_modules/onnxruntime-web/dist"
        ) from None
