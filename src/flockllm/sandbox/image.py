"""Own model code as an OCI image archive: packing a folder, reading an image, unpacking it.

Written without a daemon, and the same bytes each time: layers stay uncompressed, files are in
order, times are zero, and owners are root. `podman load` and `skopeo inspect oci-archive:` read it.
Format: OCI image-spec 1.1, an image layout in a tar file.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import shutil
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import flockllm.sdk
from flockllm.errors import SandboxError

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
GZIPPED = f"{LAYER}+gzip"

APP = "app"
"""Folder of the packed files in the image, and the working folder of its command."""

COMMAND = ("python3", "main.py")
RUNTIME = "flockllm.runtime"
"""Label: `own`, or `participant` for an image that runs on the participant's Python."""

LEFT_OUT = ("__pycache__", "node_modules")
"""Folders that are never packed, like everything whose name starts with a dot."""

MAX_JSON = 4 * 2**20
MAX_BRACKETS = 900
"""In a stranger's JSON: below every recursion limit, above every real manifest."""

MAX_FILES = 1_000_000
MAX_UNPACKED = 16 * 2**30
MOUNT_POINTS = ("dev", "proc", "tmp")
DATASET_POINT = flockllm.sdk.DATASET.lstrip("/")


@dataclass(frozen=True)
class Blob:
    """A piece of an image, named by the hash of its content."""

    media_type: str
    digest: str
    """`sha256:` and 64 hex digits."""
    size: int
    open: Callable[[], IO[bytes]]

    def descriptor(self) -> dict[str, Any]:
        """How a manifest names it."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True)
class Image:
    """An image whose pieces have been checked against the hashes that name them."""

    digest: str
    """Of the manifest, and with it of everything in the image."""
    machine: str
    """What it runs on, as OCI names it: `amd64`, `arm64`, …"""
    layers: Sequence[Blob]
    command: Sequence[str] = ()
    working_folder: str = "/"
    environment: Mapping[str, str] = field(default_factory=dict)
    brings_runtime: bool = True
    """Whether it holds a whole root file system, not only a model's own files."""


NOTHING = Image("", "amd64", (), brings_runtime=False)
"""What an image without a base is built upon. Python sources run anywhere; OCI wants a machine."""


# Packing ----------------------------------------------------------------------------------------


def sources(folder: Path) -> list[Path]:
    """The files of `folder` that an image of it holds, in order.

    Raises:
        SandboxError: one is neither a plain file nor a folder.
    """
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in LEFT_OUT:
            continue
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise SandboxError(f"{path}: only plain files and folders can be packed; remove it")
        found += sources(path) if path.is_dir() else [path]
    return found


def pack(
    folder: Path, archive: Path, base: Path | None = None, command: Sequence[str] = COMMAND
) -> list[Path]:
    """Packs `folder` into an image archive and returns the files that went in.

    The image holds the files as `/app`, and the SDK as `/app/flock_sdk.py`. Without a `base` that
    is all, and it runs on the participant's own Python and packages. With one (an OCI archive, or
    a root file system as a tar) it brings its own.
    """
    files = sources(folder)
    if not files:
        raise SandboxError(f"{folder}: holds no file to pack")
    if "main.py" in command and folder / "main.py" not in files:
        raise SandboxError(f"{folder}: has no main.py, which the image's command runs; add it")
    names = {path: f"{APP}/{path.relative_to(folder).as_posix()}" for path in files}
    content = {names[path]: path.read_bytes() for path in files}
    content.setdefault(f"{APP}/flock_sdk.py", Path(flockllm.sdk.__file__).read_bytes())
    runnable = {names[path] for path in files if path.stat().st_mode & stat.S_IXUSR}
    own = _in_memory(LAYER, _tar(content, runnable))

    with _open_base(base) if base else nullcontext(NOTHING) as below:
        _write(archive, below, [*below.layers, own], command)
    return files


def _write(archive: Path, below: Image, layers: Sequence[Blob], command: Sequence[str]) -> None:
    config = {
        "architecture": below.machine,
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Env": [f"{name}={value}" for name, value in below.environment.items()],
            "Cmd": list(command),
            "WorkingDir": f"/{APP}",
            "ExposedPorts": {f"{flockllm.sdk.PORT}/tcp": {}},
            "Labels": {RUNTIME: "own" if below.brings_runtime else "participant"},
        },
        "rootfs": {"type": "layers", "diff_ids": [_uncompressed_digest(b) for b in layers]},
    }
    settings = _in_memory(CONFIG, _json(config))
    manifest = _in_memory(
        MANIFEST,
        _json(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": settings.descriptor(),
                "layers": [layer.descriptor() for layer in layers],
            }
        ),
    )
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest.descriptor()]}
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        _add(tar, "oci-layout", _in_memory("", _json({"imageLayoutVersion": "1.0.0"})))
        _add(tar, "index.json", _in_memory("", _json(index)))
        blobs = {blob.digest: blob for blob in (manifest, settings, *layers)}
        for digest, blob in sorted(blobs.items()):
            _add(tar, f"blobs/{digest.replace(':', '/')}", blob)


def _add(tar: tarfile.TarFile, name: str, blob: Blob) -> None:
    info = tarfile.TarInfo(name)
    info.size = blob.size
    with blob.open() as file:
        tar.addfile(info, file)


def _tar(content: Mapping[str, bytes], runnable: set[str]) -> bytes:
    """A layer whose bytes depend on names and content alone."""
    folders = {str(parent) for name in content for parent in PurePosixPath(name).parents} - {"."}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(folders | content.keys()):
            info = tarfile.TarInfo(name)
            if name in folders:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            else:
                info.size, info.mode = len(content[name]), 0o755 if name in runnable else 0o644
            tar.addfile(info, io.BytesIO(content.get(name, b"")))
    return buffer.getvalue()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _in_memory(media_type: str, data: bytes) -> Blob:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return Blob(media_type, digest, len(data), lambda: io.BytesIO(data))


def _uncompressed_digest(blob: Blob) -> str:
    if blob.media_type == LAYER:
        return blob.digest
    with blob.open() as file, gzip.open(file) as plain:
        return f"sha256:{hashlib.file_digest(cast(io.BufferedReader, plain), 'sha256').hexdigest()}"


# Reading ----------------------------------------------------------------------------------------


@contextmanager
def open_image(archive: Path) -> Iterator[Image]:
    """Opens an OCI archive that a stranger may have made; its layers are read within the block.

    Raises:
        SandboxError: it is no such archive, or a piece is not what its hash says.
    """
    broken = (tarfile.TarError, OSError, ValueError, KeyError, TypeError, AttributeError)
    try:
        tar = tarfile.open(archive, "r:")  # noqa: SIM115  # closed below
    except (tarfile.TarError, OSError) as e:
        raise SandboxError(f"{archive}: no OCI image archive: {e}") from e
    with tar:
        try:
            image = _image(tar, {os.path.normpath(m.name): m for m in tar if m.isreg()})
        except broken as e:
            raise SandboxError(f"{archive}: no image: {type(e).__name__}: {e}") from e
        yield image


def _image(tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo]) -> Image:
    def parsed(name: str) -> Any:
        if members[name].size > MAX_JSON:
            raise ValueError(f"{name} is larger than {MAX_JSON} bytes")
        data = cast(IO[bytes], tar.extractfile(members[name])).read()
        if data.count(b"[") + data.count(b"{") > MAX_BRACKETS:
            raise ValueError(f"{name} has more than {MAX_BRACKETS} brackets")
        return json.loads(data)

    def blob(entry: Mapping[str, Any]) -> Blob:
        member = members[f"blobs/{entry['digest'].replace(':', '/')}"]
        with cast(io.BufferedReader, tar.extractfile(member)) as file:
            if f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" != entry["digest"]:
                raise ValueError(f"{member.name} is not what its name says")
        return Blob(
            entry["mediaType"],
            entry["digest"],
            member.size,
            lambda: cast(IO[bytes], tar.extractfile(member)),
        )

    entries = [e for e in parsed("index.json")["manifests"] if e["mediaType"] == MANIFEST]
    if len(entries) != 1:
        raise ValueError(f"must hold exactly one image manifest, holds {len(entries)}")
    top = blob(entries[0])
    manifest = parsed(f"blobs/{top.digest.replace(':', '/')}")
    settings = blob(manifest["config"])
    layers = [blob(entry) for entry in manifest["layers"]]
    if unknown := {layer.media_type for layer in layers} - {LAYER, GZIPPED}:
        raise ValueError(f"layers of type {sorted(unknown)} cannot be read; use plain tar or gzip")

    config = parsed(f"blobs/{settings.digest.replace(':', '/')}")
    run = config.get("config") or {}
    words = [*(run.get("Entrypoint") or []), *(run.get("Cmd") or [])]
    pairs = [pair.partition("=") for pair in run.get("Env") or []]
    folder = run.get("WorkingDir") or "/"
    for text in (*words, folder, config["architecture"], *(part for p in pairs for part in p)):
        if not isinstance(text, str) or "\0" in text:
            raise ValueError(f"{text!r} in its config must be text")
    return Image(
        top.digest,
        config["architecture"],
        layers,
        words,
        folder,
        {name: value for name, _, value in pairs},
        (run.get("Labels") or {}).get(RUNTIME) != "participant",
    )


@contextmanager
def _open_base(path: Path) -> Iterator[Image]:
    """Opens what an image is built upon: an OCI archive, or a root file system as a tar."""
    with tarfile.open(path) as tar:
        layout = any(os.path.normpath(m.name) == "oci-layout" for m in tar)
    if layout:
        with open_image(path) as image:
            yield image
        return
    with path.open("rb") as file:
        media_type = GZIPPED if file.read(2) == b"\x1f\x8b" else LAYER
        file.seek(0)
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    layer = Blob(media_type, digest, path.stat().st_size, lambda: path.open("rb"))
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    yield Image(digest, machine, [layer])


# Unpacking --------------------------------------------------------------------------------------


def unpack(image: Image, cache: Path) -> Path:
    """Lays the image's files out below `cache`, once, and returns their root.

    A stranger's archive cannot write outside: links are followed within the root only, devices are
    left out, and set-uid bits are dropped.

    Raises:
        SandboxError: it breaks the format, or is larger than `MAX_UNPACKED` or `MAX_FILES`.
    """
    root = cache / image.digest.removeprefix("sha256:")
    if root.exists():
        return root
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=cache, prefix="unpacking-"))
    unfinished.chmod(0o755)
    try:
        budget = _Budget(MAX_UNPACKED, MAX_FILES)
        for layer in image.layers:
            mode = "r|gz" if layer.media_type == GZIPPED else "r|"
            with layer.open() as file, tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]
                for member in tar:
                    _lay_out(tar, member, unfinished, budget)
        for name in MOUNT_POINTS:
            _remove(unfinished / name)
            (unfinished / name).mkdir()
        (unfinished / "tmp").chmod(0o1777)  # which runc gives to what is mounted there
        _remove(unfinished / DATASET_POINT)
        (unfinished / DATASET_POINT).touch()
        unfinished.rename(root)
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as e:
        if root.exists():  # another process was faster
            return root
        raise SandboxError(f"image {image.digest} cannot be unpacked: {e}") from e
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return root


@dataclass
class _Budget:
    size: int
    files: int

    def spend(self, size: int) -> None:
        self.size -= size
        self.files -= 1
        if self.size < 0 or self.files < 0:
            raise ValueError(f"holds more than {MAX_UNPACKED} bytes or {MAX_FILES} files")


def _lay_out(tar: tarfile.TarFile, member: tarfile.TarInfo, root: Path, budget: _Budget) -> None:
    budget.spend(member.size)
    path = _inside(root, member.name)
    if path == root:
        return
    if path.name == ".wh..wh..opq":
        shutil.rmtree(path.parent)
        path.parent.mkdir(mode=0o755)
        return
    if path.name.startswith(".wh."):
        _remove(path.with_name(path.name.removeprefix(".wh.")))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if member.isdir():
        if path.is_symlink() or not path.is_dir():
            _remove(path)
            path.mkdir()
        path.chmod(0o755)
        return
    _remove(path)
    if member.issym():
        path.symlink_to(member.linkname)
    elif member.islnk():
        source = _inside(root, member.linkname)
        if not source.is_symlink():
            os.link(source, path)
    elif member.isreg():
        with path.open("xb") as file:
            shutil.copyfileobj(cast(IO[bytes], tar.extractfile(member)), file)
        path.chmod(0o755 if member.mode & stat.S_IXUSR else 0o644)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _inside(root: Path, name: str, links: int = 40) -> Path:
    """Where `name` is if `root` is `/`: parents resolved within it, the last part as it is."""
    parts = [part for part in PurePosixPath(name).parts if part not in ("/", ".")]
    here = root
    for i, part in enumerate(parts):
        if part == "..":
            here = here.parent if here != root else root
            continue
        here /= part
        if i < len(parts) - 1 and here.is_symlink():
            if links == 0:
                raise ValueError(f"{name}: too many links")
            target = PurePosixPath("/", here.parent.relative_to(root), os.readlink(here))
            rest = PurePosixPath(target, *parts[i + 1 :])
            return _inside(root, str(rest), links - 1)
    return here
