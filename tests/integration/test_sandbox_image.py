"""Images of own model code: the same bytes each time, read by the usual tools, safe to unpack."""

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

from flockllm.errors import SandboxError
from flockllm.sandbox import SandboxedModel, open_image, pack, unpack
from flockllm.sandbox import image as image_module

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_model"


@pytest.fixture
def folder(tmp_path):
    """A model of three files, one of them runnable, and of some that must stay behind."""
    folder = tmp_path / "model"
    (folder / "deep" / "deeper").mkdir(parents=True)
    (folder / "main.py").write_text("print('hello')")
    (folder / "run.sh").write_text("exit")
    (folder / "run.sh").chmod(0o755)
    (folder / "deep" / "deeper" / ("long" * 60)).write_bytes(b"\0" * 1000)
    for left_out in (".env", ".git/config", "__pycache__/main.pyc"):
        (folder / left_out).parent.mkdir(exist_ok=True)
        (folder / left_out).write_text("secret")
    return folder


def unpacked(archive, cache):
    """Root of the unpacked archive."""
    with open_image(archive) as image:
        return unpack(image, cache)


def tar(*members):
    """A tar of (name, type, content or link target)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, 0o6755
            if kind == tarfile.REGTYPE:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.linkname = content
                archive.addfile(info)
    return buffer.getvalue()


def archive_of(layers, path, media_type=image_module.LAYER, edit=lambda name, data: data):
    """An OCI archive of hand-made layers, whose pieces `edit` may falsify."""
    blobs = {}

    def blob(kind, data):
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    config = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["x"]}}
    manifest = {
        "layers": [blob(media_type, layer) for layer in layers],
        "config": blob(image_module.CONFIG, json.dumps(config).encode()),
    }
    index = {"manifests": [blob(image_module.MANIFEST, json.dumps(manifest).encode())]}
    blobs |= {"oci-layout": b"{}", "index.json": json.dumps(index).encode()}
    members = [(name, tarfile.REGTYPE, edit(name, data)) for name, data in blobs.items()]
    path.write_bytes(tar(*members))
    return path


def test_the_same_folder_is_the_same_bytes(folder, tmp_path):
    """Whoever packs it, wherever and whenever: the CID names the content alone."""
    first = tmp_path / "first.tar"
    pack(folder, first)
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    (copy / "run.sh").chmod(0o700)
    (copy / ".hidden").write_text("new")
    pack(copy, tmp_path / "second.tar")

    assert first.read_bytes() == (tmp_path / "second.tar").read_bytes()
    (copy / "main.py").write_text("print('other')")
    pack(copy, tmp_path / "third.tar")
    assert first.read_bytes() != (tmp_path / "third.tar").read_bytes()


def test_what_was_packed_is_unpacked_once(folder, tmp_path):
    """Contents and the right to run survive; hidden files and caches were never packed."""
    files = pack(folder, tmp_path / "a.tar")
    root = unpacked(tmp_path / "a.tar", tmp_path / "cache")

    app = root / "app"
    assert {path.relative_to(folder) for path in files} | {Path("flock_sdk.py")} == {
        path.relative_to(app) for path in app.rglob("*") if path.is_file()
    }
    assert (app / "main.py").read_text() == "print('hello')"
    assert (app / "run.sh").stat().st_mode & 0o777 == 0o755
    (app / "marker").touch()
    assert (unpacked(tmp_path / "a.tar", tmp_path / "cache") / "app" / "marker").exists()


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: shutil.rmtree(folder) or folder.mkdir(), "holds no file"),
        (lambda folder: (folder / "main.py").unlink(), "has no main.py"),
        (lambda folder: (folder / "link").symlink_to("/etc/passwd"), "only plain files"),
    ],
)
def test_what_cannot_be_packed_is_refused(folder, tmp_path, prepare, message):
    """Nothing of the packer's machine slips in by a link, and nothing useless is published."""
    prepare(folder)

    with pytest.raises(SandboxError, match=message):
        pack(folder, tmp_path / "a.tar")


@pytest.mark.skipif(not shutil.which("skopeo"), reason="skopeo is not installed")
def test_skopeo_reads_it(tmp_path):
    """An independent reader finds the same digest, command and layer."""
    pack(EXAMPLE, tmp_path / "a.tar")
    source = f"oci-archive:{tmp_path / 'a.tar'}"
    run = subprocess.run(["skopeo", "inspect", source], capture_output=True, check=True)
    config = subprocess.run(
        ["skopeo", "inspect", "--config", source], capture_output=True, check=True
    )

    with open_image(tmp_path / "a.tar") as image:
        assert json.loads(run.stdout)["Digest"] == image.digest
        assert json.loads(run.stdout)["Layers"] == [layer.digest for layer in image.layers]
    assert json.loads(config.stdout)["config"]["Cmd"] == ["python3", "main.py"]


@pytest.mark.skipif(not shutil.which("podman"), reason="podman is not installed")
def test_podman_loads_it(folder, tmp_path):
    """`podman load` accepts the archive, and finds the files in it."""
    pack(folder, tmp_path / "a.tar")
    load = ["podman", "load", "--quiet", "--input", tmp_path / "a.tar"]
    run = subprocess.run(load, capture_output=True, text=True, check=True)
    name = run.stdout.strip().removeprefix("Loaded image: ")
    try:
        inspect = subprocess.run(
            ["podman", "image", "inspect", name], capture_output=True, check=True
        )
        assert json.loads(inspect.stdout)[0]["Config"]["WorkingDir"] == "/app"
    finally:
        subprocess.run(["podman", "rmi", "--force", name], capture_output=True, check=True)


def test_a_base_brings_its_own_root_file_system(folder, tmp_path):
    """A tar of a root file system goes below the code, and the image says so, reproducibly."""
    base = tmp_path / "base.tar.gz"
    layer = tar(
        ("usr/bin/tool", tarfile.REGTYPE, b"tool"),
        ("bin", tarfile.SYMTYPE, "usr/bin"),
        ("app/old", tarfile.REGTYPE, b"old"),
    )
    base.write_bytes(gzip.compress(layer, mtime=0))
    pack(folder, tmp_path / "on_tar.tar", base)
    archive_of([layer], tmp_path / "base_image.tar")
    pack(folder, tmp_path / "on_image.tar", tmp_path / "base_image.tar", ["/bin/tool"])

    for name in ("on_tar.tar", "on_image.tar"):
        root = unpacked(tmp_path / name, tmp_path / "cache")
        assert (root / "usr" / "bin" / "tool").read_bytes() == b"tool"
        assert (root / "bin").is_symlink()
        assert {"main.py", "old"} <= {path.name for path in (root / "app").iterdir()}
    with open_image(tmp_path / "on_image.tar") as image:
        assert image.brings_runtime
        assert image.command == ["/bin/tool"]


@pytest.mark.skipif(not shutil.which("ldd"), reason="needs ldd to collect libraries")
@pytest.mark.parametrize(("engine", "program"), [("bubblewrap", "bwrap"), ("podman", "podman")])
def test_an_image_with_its_own_python_runs(tmp_path, engine, program):
    """Nothing of the participant's Python is needed, or there, once an image has its own."""
    if not shutil.which(program):
        pytest.skip(f"{engine} is not installed")
    folder, base = tmp_path / "model", tmp_path / "base.tar"
    folder.mkdir()
    (folder / "main.py").write_text(
        "import sys\n"
        "from flock_sdk import FlockModel, FlockSDK\n"
        "class Model(FlockModel):\n"
        "    def init_dataset(self, path): open(path).read()\n"
        "    def train(self, parameters): return sys.executable.encode()\n"
        "    def evaluate(self, parameters): return 1\n"
        "    def aggregate(self, parameters_list): return b''\n"
        "FlockSDK(Model()).run()\n"
    )
    own_python(base)
    pack(folder, tmp_path / "image.tar", base, ["/own/bin/python", "main.py"])
    (tmp_path / "data.json").write_text("[]")

    with SandboxedModel(
        tmp_path / "image.tar", tmp_path / "data.json", engine=engine, cache=tmp_path / "cache"
    ) as model:
        assert model.train(None) == b"/own/bin/python"


def own_python(path):
    """Writes a root file system of just this interpreter, its library and what it links to."""
    binary = Path(sys.executable).resolve()
    library = Path(sysconfig.get_path("stdlib"))
    modules = list((library / "lib-dynload").glob("*.so"))
    linked = subprocess.run(["ldd", binary, *modules], capture_output=True, text=True).stdout
    words = {word for word in linked.split() if word.startswith("/") and not word.endswith(":")}
    skipped = ("site-packages", "test", "tests", "idlelib", "__pycache__", "ensurepip")

    def kept(member):
        return None if set(Path(member.name).parts) & set(skipped) else member

    with tarfile.open(path, "w") as archive:
        archive.add(binary, "own/bin/python")
        archive.add(library, f"own/lib/{library.name}", filter=kept)
        for word in sorted(words):
            archive.add(Path(word).resolve(), word.lstrip("/"))


OUTSIDE = [
    [("../out", tarfile.REGTYPE, b"x")],
    [("/../../out", tarfile.REGTYPE, b"x")],
    [("d", tarfile.SYMTYPE, "{outside}"), ("d/out", tarfile.REGTYPE, b"x")],
    [("d", tarfile.SYMTYPE, "../../.."), ("d/out", tarfile.REGTYPE, b"x")],
    [("a", tarfile.SYMTYPE, "d"), ("d", tarfile.SYMTYPE, "{outside}"),
     ("a/out", tarfile.REGTYPE, b"x")],
    [("out", tarfile.SYMTYPE, "{outside}/out"), ("out", tarfile.REGTYPE, b"x")],
    [("tmp", tarfile.SYMTYPE, "{outside}"), ("dataset.json", tarfile.SYMTYPE, "{outside}/out")],
    [("d", tarfile.SYMTYPE, "{outside}"), ("d/.wh.secret", tarfile.REGTYPE, b"")],
    [("d", tarfile.SYMTYPE, "{outside}"), ("d/.wh..wh..opq", tarfile.REGTYPE, b"")],
    [("d", tarfile.SYMTYPE, "{outside}"), ("stolen", tarfile.LNKTYPE, "d/secret")],
    [("stolen", tarfile.LNKTYPE, "{outside}/secret")],
    [("loop", tarfile.SYMTYPE, "loop"), ("loop/out", tarfile.REGTYPE, b"x")],
    [("device", tarfile.CHRTYPE, ""), ("pipe", tarfile.FIFOTYPE, "")],
    [(".wh..", tarfile.REGTYPE, b""), (".wh...", tarfile.REGTYPE, b"")],
]  # fmt: skip


@pytest.mark.parametrize("members", OUTSIDE)
def test_an_archive_cannot_touch_what_is_outside(tmp_path, members):
    """No name, link or whiteout of a stranger's image reads, writes or removes a file of ours."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    members = [
        (name, kind, c.format(outside=outside) if isinstance(c, str) else c)
        for name, kind, c in members
    ]
    archive_of([tar(*members)], tmp_path / "a.tar")
    try:
        root = unpacked(tmp_path / "a.tar", tmp_path / "deep" / "cache")
    except SandboxError:
        root = tmp_path / "none"

    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "deep", "outside"]
    for path in root.rglob("*"):
        assert path.is_symlink() or path.is_dir() or path.is_file()
        assert path.is_symlink() or not path.is_file() or b"secret" not in path.read_bytes()
        assert path.is_symlink() or path == root / "tmp" or not path.stat().st_mode & 0o7000


def test_later_layers_change_and_remove_what_earlier_ones_hold(tmp_path):
    """Whiteouts, opaque folders and replaced kinds mean what OCI says."""
    first = tar(
        ("a/gone", tarfile.REGTYPE, b"1"),
        ("b/hidden", tarfile.REGTYPE, b"1"),
        ("c", tarfile.REGTYPE, b"1"),
        ("d/e", tarfile.REGTYPE, b"1"),
    )
    second = tar(
        ("a/.wh.gone", tarfile.REGTYPE, b""),
        ("b/.wh..wh..opq", tarfile.REGTYPE, b""),
        ("c/now_a_folder", tarfile.REGTYPE, b"2"),
        ("d", tarfile.REGTYPE, b"2"),
    )
    with pytest.raises(SandboxError):  # a file where the layer wants a folder, unannounced
        unpacked(archive_of([first, second], tmp_path / "a.tar"), tmp_path / "cache")
    second = tar(
        ("a/.wh.gone", tarfile.REGTYPE, b""),
        ("b/.wh..wh..opq", tarfile.REGTYPE, b""),
        ("c", tarfile.DIRTYPE, ""),
        ("c/now_a_folder", tarfile.REGTYPE, b"2"),
        ("d", tarfile.REGTYPE, b"2"),
    )
    root = unpacked(archive_of([first, second], tmp_path / "b.tar"), tmp_path / "cache")

    found = {str(path.relative_to(root)) for path in root.rglob("*")}
    assert found == {"a", "b", "c", "c/now_a_folder", "d", "dev", "proc", "tmp", "dataset.json"}


def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path, monkeypatch):
    """A small archive of a large layer stops at the limit, and leaves nothing behind."""
    monkeypatch.setattr(image_module, "MAX_UNPACKED", 2**20)
    bomb = gzip.compress(tar(*((f"{i}", tarfile.REGTYPE, bytes(2**18)) for i in range(8))))
    archive_of([bomb], tmp_path / "a.tar", image_module.GZIPPED)

    with pytest.raises(SandboxError, match="more than"):
        unpacked(tmp_path / "a.tar", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    "edit",
    [
        lambda name, data: data[:-1] + b"?" if len(data) > 1000 else data,
        lambda name, data: b"[" * 10_000 if name == "index.json" else data,
        lambda name, data: b"{}" if name == "index.json" else data,
        lambda name, data: b'{"manifests": [7]}' if name == "index.json" else data,
        lambda name, data: data.replace(b"blobs", b"other") if name == "index.json" else data[:5],
    ],
)
def test_a_falsified_archive_is_refused(tmp_path, edit):
    """Every piece is what its hash says, or there is an error and no image."""
    layer = tar(("file", tarfile.REGTYPE, bytes(5000)))
    archive_of([layer], tmp_path / "a.tar", edit=edit)

    with pytest.raises(SandboxError), open_image(tmp_path / "a.tar"):
        pass


@pytest.mark.parametrize("content", [b"", b"nonsense" * 100, gzip.compress(b"x")])
def test_what_is_no_archive_is_refused(tmp_path, content):
    """Whatever a CID leads to, the answer is an image or a `SandboxError`."""
    (tmp_path / "a.tar").write_bytes(content)

    with pytest.raises(SandboxError), open_image(tmp_path / "a.tar"):
        pass
