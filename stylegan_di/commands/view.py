"""Shows a GAN in the browser, or two side by side at the same latent: by seed, class, truncation, noise and style.

    stylegan-di view fashion-gan.pkl
    stylegan-di view fashion-gan.pkl runs/00000-.../network-best.pkl --open
    stylegan-di view fashion-gan.pkl runs/00000-.../network-best.pkl --export=out/page.html

Without --export it serves a page to this machine until Ctrl-C. With it, it writes a page that runs the networks in the
browser, so that it can be sent to others: one file that opens from disk, or a folder for a web server.
"""

from __future__ import annotations

import webbrowser
from pathlib import Path

import click

from stylegan_di.dnnlib.cli import Device, default_device, help_of, user_errors
from stylegan_di.dnnlib.util import UserError
from stylegan_di.explore.viewer.export import ORT_FOLDER, export
from stylegan_di.explore.viewer.looks import Viewer
from stylegan_di.explore.viewer.server import ViewServer
from stylegan_di.torch_utils.ops import build as kernels

PORT = 8000


@click.command(help=help_of(__doc__))
@click.argument("network", metavar="A")
@click.argument("after", metavar="[B]", required=False)
@click.option("--port", type=click.IntRange(0, 65535), help="Port on 127.0.0.1; 0: any free one.  [default: 8000]")
@click.option("--open", "opened", is_flag=True, help="Open the page in the browser.")
@click.option("--device", type=Device(), help="cuda, cuda:N or cpu.  [default: cuda when there]")
@click.option("--export", "dest", type=click.Path(path_type=Path), metavar="FILE.html|DIR",
              help="Write a page that runs the networks itself, and end.")
@click.option("--ort", type=click.Path(path_type=Path), metavar="DIR",
              help=f"[--export] Folder with the files of the npm package onnxruntime-web.  [default: {ORT_FOLDER}]")
@user_errors
def main(
    network: str, after: str | None, port: int | None, opened: bool, device: str | None, dest: Path | None,
    ort: Path | None,
) -> None:  # fmt: skip
    names = [network] if after is None else [network, after]
    if dest is not None:
        for option, value in (("--port", port), ("--open", opened or None), ("--device", device)):
            if value is not None:
                raise UserError(f"{option} is for the page that is served here; leave it out with --export")
        return click.echo(export(Viewer(names), dest, ort or ORT_FOLDER))
    if ort is not None:
        raise UserError(f"--ort={ort} is for --export; leave it out")
    device = device or default_device()
    kernels.load(device.partition(":")[0], may_build=False)
    with ViewServer(Viewer(names, device), PORT if port is None else port) as server:
        try:
            click.echo(f"{server.url} shows {' and '.join(names)}; Ctrl-C ends it")
            if opened:
                webbrowser.open(server.url)
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo()
