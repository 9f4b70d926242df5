"""Tells by the first bytes of a file whether it can be what its name promises."""

from __future__ import annotations

#: How files of a suffix begin. A .pkl may be TorchScript (a zip), and a .pth be of PyTorch before 1.6 (a pickle).
_PICKLE, _ZIP = tuple(bytes([0x80, protocol]) for protocol in range(2, 6)), (b"PK\x03\x04",)
BEGINNINGS: dict[str, tuple[bytes, ...]] = {
    ".pkl": _PICKLE + _ZIP, ".pt": _PICKLE + _ZIP, ".pth": _PICKLE + _ZIP, ".npz": _ZIP, ".zip": _ZIP,
}  # fmt: skip


def wrong_kind(head: bytes, size: int, suffix: str) -> str:
    """Says why a file with this suffix cannot be usable, '' if it may be.

    Args:
        head: its first 512 bytes, or all if it has fewer.
        size: its size in bytes.
        suffix: with the dot; of unknown ones only empty files and web pages are recognised.
    """
    if not head:
        return "it is empty"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
        return "it is a web page instead of the file"
    if suffix == ".safetensors":
        header = int.from_bytes(head[:8], "little")
        return "" if head[8:9] == b"{" and header <= size - 8 else "it does not begin like a .safetensors file"
    beginnings = BEGINNINGS.get(suffix)
    return "" if beginnings is None or head.startswith(beginnings) else f"it does not begin like a {suffix} file"
