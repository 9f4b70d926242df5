"""Builds the ops' native kernels, once on each machine, and attaches them to the ops' schemas.

    python -m stylegan_di.torch_utils.ops.build                 # for the CPU, and with --device=cuda for the GPU

A build is one call of the compiler on one file. Its library registers kernels with PyTorch's dispatcher and has no
Python binding, so that it works with every Python version. It is cached under a hash of sources, PyTorch, compiler and
flags, in a folder that only this user can write into, with its SHA-256 beside it; a library that does not pass these
checks is not loaded but built again. If several processes need it, one builds and the others wait. Nothing is built or
loaded at import.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from stylegan_di.dnnlib.safe_files import locked, not_private, private_folder
from stylegan_di.dnnlib.util import UserError, atomic_write, cache_folder, say, sha256_of_file

SOURCES = Path(__file__).parent / "csrc"
TIMEOUT_SECONDS = {"cpu": 300, "cuda": 1200}
CAPABILITY_FLAGS = {
    "AVX512": ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mavx2", "-mfma", "-mf16c"],
    "AVX2": ["-mavx2", "-mfma", "-mf16c"],
}
COMPILERS = {"cpu": ("c++", "g++", "clang++"), "cuda": ("nvcc",)}
INSTALL = {
    "cpu": "install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++) or name it in CXX",
    "cuda": "install NVIDIA's CUDA toolkit of PyTorch's CUDA version, or put its nvcc on PATH",
}


class BuildError(UserError):
    """The kernels cannot be built; the message is the compiler's complete output."""


@dataclass(frozen=True)
class Recipe:
    """How to build the kernels of a device."""

    device: str  # cpu or cuda
    compiler: str
    flags: tuple[str, ...]

    @property
    def source(self) -> Path:
        return SOURCES / self.device / ("ops.cpp" if self.device == "cpu" else "ops.cu")

    @cached_property
    def key(self) -> str:
        """A hash of everything that the library depends on."""
        version = subprocess.run([self.compiler, "--version"], capture_output=True, text=True, check=False)
        parts = [torch.__version__, self.compiler, version.stdout, *self.flags]
        for path in sorted([*SOURCES.glob("*.h"), *self.source.parent.iterdir()]):
            parts += [path.name, path.read_text(encoding="utf-8")]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    @property
    def library(self) -> Path:
        return cache_folder().parent / "ops" / f"stylegan_di-{self.device}-{self.key}.so"

    @property
    def checksum(self) -> Path:
        """The file with the library's SHA-256."""
        return self.library.with_suffix(".sha256")

    @property
    def failure(self) -> Path:
        """The file with the compiler's output when it last failed; while it exists, `load` does not try again."""
        return self.library.with_suffix(".error.txt")

    def command(self, output: Path) -> list[str]:
        library_folder = str(Path(torch.__file__).parent / "lib")
        libraries = ["c10", "torch_cpu"] + (["c10_cuda", "torch_cuda"] if self.device == "cuda" else [])
        link = [f"-L{library_folder}", *(f"-l{name}" for name in libraries)]
        return [self.compiler, *self.flags, str(self.source), "-o", str(output), *link]


def recipe(device: str) -> Recipe:
    """Returns the recipe for this machine.

    Raises:
        UserError: if there is no compiler, or kernels cannot be built on this system.
    """
    if not sys.platform.startswith("linux"):
        raise UserError(f"native kernels are built on Linux only, not on {sys.platform}")
    names = COMPILERS[device]
    if device == "cpu" and os.environ.get("CXX"):
        names = (os.environ["CXX"],)
    compiler = next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        raise UserError(f"there is no compiler ({', '.join(names)}): {INSTALL[device]}")
    return Recipe(device, compiler, tuple(cpu_flags() if device == "cpu" else cuda_flags(_gpu_architecture())))


def _common_flags() -> list[str]:
    include = str(Path(torch.__file__).parent / "include")
    abi = int(torch.compiled_with_cxx11_abi())
    return ["-std=c++20", "-O3", "-shared", f"-D_GLIBCXX_USE_CXX11_ABI={abi}", "-isystem", include]


def cpu_flags() -> list[str]:
    """Uses the instruction set that PyTorch has detected, because the headers of its vector types depend on it."""
    capability = torch.backends.cpu.get_cpu_capability()
    flags = CAPABILITY_FLAGS.get(capability, [])
    name = capability if flags else "DEFAULT"
    return [*_common_flags(), "-fPIC", "-fopenmp", *flags, f"-DCPU_CAPABILITY={name}", f"-DCPU_CAPABILITY_{name}"]


def cuda_flags(architecture: str) -> list[str]:
    """Returns the flags for an architecture such as sm_90."""
    macros = ["-DC10_USING_CUSTOM_GENERATED_MACROS", "-diag-suppress=177"]
    return [*_common_flags(), "-Xcompiler", "-fPIC", f"-arch={architecture}", "--expt-relaxed-constexpr", *macros]


def _gpu_architecture() -> str:
    if not torch.cuda.is_available():
        raise UserError("kernels for CUDA are built for this machine's GPU, and PyTorch finds none")
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def build(plan: Recipe, *, again: bool = False) -> Path:
    """Returns the library, built if the cache has none that can be trusted; `again` repeats a build that has failed.

    Raises:
        BuildError: if the compiler fails.
    """
    if not distrust(plan):
        return plan.library
    folder = plan.library.parent
    if wrong := private_folder(folder):
        say(f"{folder} {wrong}: it has been removed, and native kernels are built again")
    with locked(plan.library.with_suffix(".lock")):
        wrong = distrust(plan)
        if not wrong:
            return plan.library
        if plan.failure.is_file() and not again:
            raise BuildError(plan.failure.read_text(encoding="utf-8"))
        if os.path.lexists(plan.library):
            say(f"{plan.library} {wrong}: it is not loaded but built again")
        error = _compile(plan)
        if error is not None:
            atomic_write(plan.failure, error.encode())
            raise BuildError(error)
        plan.failure.unlink(missing_ok=True)
    return plan.library


def distrust(plan: Recipe) -> str:
    """Says why the library in the cache is not loaded; '' if it is as this user's build left it."""
    if not os.path.lexists(plan.library):
        return "is not built"
    if wrong := not_private(plan.library.parent):
        return f"is in a folder that {wrong}"
    if not plan.checksum.exists():
        return "has no SHA-256 beside it"
    for path in (plan.library, plan.checksum):
        if wrong := not_private(path, stat.S_IFREG):
            return wrong
    built = plan.checksum.read_bytes() == sha256_of_file(plan.library).encode()
    return "" if built else "has another SHA-256 than its build"


def is_built(device: str) -> bool:
    """Whether `load` will not build, because it finds the library or a failure, or there is no recipe."""
    try:
        plan = recipe(device)
    except UserError:
        return True
    return not distrust(plan) or plan.failure.is_file()


def _compile(plan: Recipe) -> str | None:
    """Compiles to a temporary name, then renames; returns what went wrong, None if nothing did."""
    temporary = plan.library.with_name(f".{plan.library.name}.{os.getpid()}.tmp")
    command = plan.command(temporary)
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS[plan.device])
        if result.returncode:
            return f"{' '.join(command)}\nexit status {result.returncode}\n{result.stdout}{result.stderr}"
        plan.checksum.unlink(missing_ok=True)
        atomic_write(plan.library, temporary.read_bytes())
        atomic_write(plan.checksum, sha256_of_file(temporary).encode())
        for path in (plan.library, plan.checksum):
            path.chmod(0o600)  # whatever the umask
        return None
    except (subprocess.TimeoutExpired, OSError) as error:
        return f"{' '.join(command)}\n{error}"
    finally:
        temporary.unlink(missing_ok=True)


def load(device: str = "cpu", *, may_build: bool) -> str:
    """Attaches native kernels to the ops for the rest of this process; returns a text that says what the ops now use.

    Args:
        device: cpu or cuda; another has none.
        may_build: whether to build kernels that are not in the cache; otherwise they are used only if cached.

    Without a working compiler the ops keep their reference implementation, and the text says so.
    """
    if device not in COMPILERS:
        return "reference (there are native kernels for cpu and cuda)"
    try:
        plan = recipe(device)
        if not may_build and (wrong := distrust(plan)):
            if os.path.lexists(plan.library):
                say(f"{plan.library} {wrong}: it is not loaded")
            return "reference (native kernels are not built: python -m stylegan_di.torch_utils.ops.build)"
        library = build(plan)
        if not attached(device):
            torch.ops.load_library(str(library))
    except BuildError:
        return "reference (building native kernels failed: stylegan-di doctor says why)"
    except (UserError, OSError) as error:
        return f"reference ({str(error).splitlines()[0]})"
    return f"native ({torch.backends.cpu.get_cpu_capability() if device == 'cpu' else _gpu_architecture()})"


def attached(device: str) -> bool:
    """Whether the ops have native kernels in this process."""
    return any(Path(path).name.startswith(f"stylegan_di-{device}-") for path in torch.ops.loaded_libraries)


def main(arguments: list[str] | None = None) -> None:
    """Builds the kernels and prints the library's path."""
    parser = argparse.ArgumentParser(description="Builds the ops' native kernels.")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    device = parser.parse_args(arguments).device
    try:
        library = build(recipe(device), again=True)
    except UserError as error:
        parser.exit(1, f"{error}\n")
    sys.stdout.write(f"{library}\n")


if __name__ == "__main__":
    main()
