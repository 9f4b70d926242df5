"""Files of the Hugging Face hub by names such as hf:owner/name/file.pkl; huggingface_hub fetches and sends them.

    hf:owner/name                 the repository's only network file
    hf:owner/name/folder/x.pkl    one of its files
    hf:owner/name@revision/x.pkl  of a branch, a tag or a commit

Its own variables hold: HF_HOME (the cache), HF_ENDPOINT (the hub), HF_TOKEN, HF_HUB_OFFLINE. DNNLIB_REFRESH=1 fetches
anew. What a server answers is held to the limits of other downloads (`dnnlib.download`), and to names that stay in the
cache: huggingface_hub makes paths of some of its headers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from stylegan_di.dnnlib import download
from stylegan_di.dnnlib.untrusted import brief
from stylegan_di.dnnlib.util import UserError, not_installed, say

HUB = "hf:"
PAGES = "https://huggingface.co/"
NETWORK = "network.safetensors"  # what `push` writes, and the file that is meant where none is named
PIPELINE = "model_index.json"  # the file that makes a repository a pipeline in diffusers' layout
NETWORK_SUFFIXES = (".safetensors", ".pkl", ".pt", ".pth", ".bin")
MOST_LISTED = 8  # files in a message
#: Headers of a file that become parts of paths, and what they may be.
NAMING = {"ETag": r'(W/)?"?[\w.:=+-]{1,200}"?', "X-Linked-Etag": r'(W/)?"?[\w.:=+-]{1,200}"?',
          "X-Repo-Commit": r"[\w-]{1,100}", "X-Xet-Hash": r"[\w-]{1,100}"}  # fmt: skip
MAX_LISTING = 1 << 26  # bytes of an answer that is no file of a repository
FETCHING = "A private repository needs `hf auth login` or HF_TOKEN; without a connection, pass the path of a copy"
SENDING = "Log in with `hf auth login`, or set HF_TOKEN, as one who may write there"


@dataclass(frozen=True)
class HubName:
    """What a name says: a repository, its revision (None: the main one), and a file in it, '' for none."""

    repo: str
    revision: str | None
    file: str

    @property
    def page(self) -> str:
        return f"{PAGES}{self.repo}/"


def parse(name: str) -> HubName:
    """'hf:owner/name@revision/file' -> a HubName.

    Raises:
        UserError: if it is no such name.
    """
    found = re.fullmatch(rf"{HUB}([\w.-]+/[\w.-]+)(?:@([\w.-]+))?((?:/[\w.+-]+)*)", name)
    if found is None or ".." in name:
        raise UserError(f"{name[:200]}: accepted is hf:owner/name, or hf:owner/name@revision/file")
    return HubName(found[1], found[2], found[3].removeprefix("/"))


def fetch(name: str) -> Path:
    """Returns the local copy of a network file, which is downloaded unless the hub's cache has it.

    Raises:
        UserError: if there is no such file, or it cannot be fetched.
    """
    parsed = parse(name)
    with told(f"{name} could not be downloaded") as library:
        file = parsed.file or _network_of(parsed, library)
        path = Path(library.hf_hub_download(parsed.repo, file, revision=parsed.revision, force_download=anew()))
        if not anew() and (wrong := download.mistake(path)):
            say(f"{path} is fetched anew: {wrong}")
            path.unlink()  # it may lead to another version's file
            path = Path(library.hf_hub_download(parsed.repo, file, revision=parsed.revision, force_download=True))
        if wrong := download.mistake(path):
            raise UserError(f"{name}: {wrong}; it lies at {path}")
        return path


def anew() -> bool:
    """Whether what the hub's cache has is to be fetched all the same."""
    return bool(os.environ.get(download.REFRESH))


def is_cached(name: str) -> bool:
    """Whether `fetch` needs no download; false where the repository has to be asked for its files."""
    parsed = parse(name)
    with told(name) as library:
        found = library.try_to_load_from_cache(parsed.repo, parsed.file or NETWORK, revision=parsed.revision)
        return isinstance(found, str)


def is_pipeline(name: str) -> bool:
    """Whether a name is that of a repository in diffusers' layout; asks the hub unless its cache knows.

    Raises:
        UserError: if the hub cannot be asked.
    """
    parsed = parse(name)
    if parsed.file:
        return False
    with told(f"{name} could not be downloaded") as library:
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            library.hf_hub_download(parsed.repo, PIPELINE, revision=parsed.revision)
        except LocalEntryNotFoundError:  # without a connection
            raise
        except EntryNotFoundError:
            return False
        return True


def push(folder: Path, repo: str, *, private: bool, message: str) -> str:
    """Sends a folder's files to a repository of networks, which is made if it is not there; returns its address.

    Raises:
        UserError: if it cannot be sent.
    """
    name = parse(HUB + repo)
    if name.file or name.revision:
        raise UserError(f"{repo}: accepted is owner/name")
    with told(f"{repo} could not be written", SENDING) as library:
        api = library.HfApi()
        url = str(api.create_repo(repo, private=private, exist_ok=True))
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
        return url


@contextmanager
def told(what: str, remedy: str = FETCHING) -> Iterator[ModuleType]:
    """Gives huggingface_hub, and turns its errors, of HTTP, files, accounts, into a UserError: what it is of, a remedy.

    Raises:
        UserError: also if it is not installed.
    """
    try:
        import huggingface_hub
    except ImportError:
        name = what.partition(" ")[0]
        raise not_installed(name, "huggingface_hub", "hub") from None
    try:
        with _watched(huggingface_hub):
            yield huggingface_hub
    except UserError:
        raise
    except Exception as error:  # they have no base in common
        raise UserError(f"{what} ({brief(error.__cause__ or error)}). {remedy}") from error


@contextmanager
def _watched(library: ModuleType) -> Iterator[None]:
    """Checks every answer to the library in this block, and the bytes that come with it.

    Raises:
        UserError: if the library is too old to be watched.
    """
    from huggingface_hub.utils import get_session

    session = get_session()
    if not hasattr(session, "event_hooks"):
        raise UserError(f"huggingface_hub {library.__version__} is too old: pip install -U 'huggingface_hub>=1.0'")
    hooks = session.event_hooks
    session.event_hooks = hooks | {"response": [*hooks["response"], _check]}
    try:
        yield
    finally:
        session.event_hooks = hooks


def _check(response: Any) -> None:
    """Raises BrokenTransferError for an answer (of httpx) that leads out of the cache, or is beyond the limits."""
    for header, accepted in NAMING.items() if "X-Repo-Commit" in response.headers else ():
        value = response.headers.get(header)
        if value is not None and (".." in value or not re.fullmatch(accepted, value)):
            raise download.BrokenTransferError(f"the header {header} of {response.url} is {value[:100]!r}")
    path = response.url.path
    most = MAX_LISTING if "/api/" in path and "/resolve/" not in path else download.MAX_BYTES
    for header in ("Content-Length", "X-Linked-Size"):
        size = response.headers.get(header, "0")
        if not re.fullmatch(r"[0-9]{1,18}", size) or int(size) > most:
            raise download.BrokenTransferError(f"{response.url} has {size[:40]} bytes; up to {most} are fetched")
    response.iter_raw = _counted(response.iter_raw, download.Watch(most))


def _counted(iter_raw: Callable[..., Iterator[bytes]], watch: download.Watch) -> Callable[..., Iterator[bytes]]:
    def iterate(*arguments: Any, **options: Any) -> Iterator[bytes]:
        for data in iter_raw(*arguments, **options):
            watch.count(len(data))
            yield data

    return iterate


def _network_of(name: HubName, library: ModuleType) -> str:
    """The file that is meant by a repository's name alone."""
    try:
        files = library.HfApi().list_repo_files(name.repo, revision=name.revision)
    except Exception:
        if isinstance(library.try_to_load_from_cache(name.repo, NETWORK, revision=name.revision), str):
            return NETWORK
        raise
    found = [file for file in files if file.endswith(NETWORK_SUFFIXES)]
    if NETWORK in found:
        return NETWORK
    if len(found) == 1:
        return str(found[0])
    listed = ", ".join(found[:MOST_LISTED]) + (", ..." if len(found) > MOST_LISTED else "")
    what = f"several network files: {listed}; name one" if found else "no network file; name the file"
    raise UserError(f"{HUB}{name.repo}: the repository holds {what}, as in {HUB}{name.repo}/FILE")
