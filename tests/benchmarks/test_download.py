"""Downloads, from a server on loopback: good ones, broken ones and none."""

import gc
import io
import re
import socketserver
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks import BenchmarkError
from benchmarks.experiment import data as download

MNIST = {f"{name}.gz": name.encode() * 9 for name in download.MD5["mnist"]}
BATCHES = {name: name.encode() * 9 for name in download.MD5["cifar10"]}


def archive(members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


class Handler(SimpleHTTPRequestHandler):
    files: dict = {}  # noqa: RUF012
    asked: list = []  # noqa: RUF012

    def do_GET(self):
        name = self.path.removeprefix("/mirror/")
        self.asked.append(name)
        if name not in self.files:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.files[name])))
        self.end_headers()
        self.wfile.write(self.files[name])

    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(publish):
    """A server on loopback with files to set, and the MD5s it should have."""
    publish(
        "mnist", {name.removesuffix(".gz"): content for name, content in MNIST.items()}
    )
    publish("cifar10", BATCHES)
    handler = type("Here", (Handler,), {"files": dict(MNIST), "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    handler.url = f"http://127.0.0.1:{server.server_port}/mirror/"
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def serve_cifar(mirror, members):
    mirror.files[download.CIFAR10_ARCHIVE] = archive(members)


def test_mnist_is_fetched_once(mirror, tmp_path):
    folder = download.download("mnist", tmp_path, mirror.url)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == MNIST
    assert folder == tmp_path / "MNIST" / "raw"
    assert len(mirror.asked) == 4
    download.download("mnist", tmp_path, mirror.url)
    assert len(mirror.asked) == 4


def test_only_what_is_missing_or_wrong_is_fetched(mirror, tmp_path):
    folder = download.download("mnist", tmp_path, mirror.url)
    first, second, *_ = sorted(MNIST)
    (folder / first).unlink()
    (folder / second).write_bytes(b"damaged")
    mirror.asked.clear()
    download.download("mnist", tmp_path, mirror.url)
    assert sorted(mirror.asked) == [first, second]
    assert (folder / second).read_bytes() == MNIST[second]


@pytest.mark.parametrize("content", [b"", b"something else"])
def test_a_wrong_file_is_fetched_anew(mirror, tmp_path, content):
    name = next(iter(MNIST))
    mirror.files[name] = content
    with pytest.raises(
        BenchmarkError, match=rf"{name}: expected the file that was published"
    ):
        download.download("mnist", tmp_path, mirror.url)
    mirror.files[name] = MNIST[name]
    mirror.asked.clear()
    download.download("mnist", tmp_path, mirror.url)
    assert mirror.asked == [name]


def test_no_such_file_and_no_such_server(mirror, tmp_path):
    with pytest.raises(BenchmarkError, match=r"could not be fetched: .*404"):
        download.download("mnist", tmp_path, mirror.url + "elsewhere/")
    with pytest.raises(BenchmarkError, match="could not be fetched"):
        download.download("mnist", tmp_path, "http://127.0.0.1:9/")


def test_cifar10_is_unpacked_and_its_archive_removed(mirror, tmp_path):
    members = {
        f"cifar-10-batches-py/{name}": content for name, content in BATCHES.items()
    }
    serve_cifar(mirror, members)
    folder = download.download("cifar10", tmp_path, mirror.url)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == BATCHES
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-batches-py"]
    download.download("cifar10", tmp_path, mirror.url)
    assert len(mirror.asked) == 1


def test_nothing_else_leaves_the_archive(mirror, tmp_path):
    members = {
        f"cifar-10-batches-py/{name}": content for name, content in BATCHES.items()
    }
    serve_cifar(mirror, {"../escaped": b"!", "/tmp/escaped": b"!", **members})
    download.download("cifar10", tmp_path / "data", mirror.url)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert [path.name for path in (tmp_path / "data").iterdir()] == [
        "cifar-10-batches-py"
    ]


def test_an_archive_without_a_batch(mirror, tmp_path):
    serve_cifar(mirror, {"cifar-10-batches-py/data_batch_1": BATCHES["data_batch_1"]})
    with pytest.raises(
        BenchmarkError, match=r"data_batch_2: expected .*, found \[Errno 2"
    ):
        download.download("cifar10", tmp_path, mirror.url)


def test_a_damaged_archive(mirror, tmp_path):
    members = {
        f"cifar-10-batches-py/{name}": content for name, content in BATCHES.items()
    }
    whole = archive(members)
    for content in (whole[:-20], whole[:60], b"nothing"):
        mirror.files[download.CIFAR10_ARCHIVE] = content
        with pytest.raises(
            BenchmarkError, match=r"(data_batch_1|test_batch): expected"
        ):
            download.download("cifar10", tmp_path, mirror.url)
        assert not list(tmp_path.glob("*.tar.gz"))


def test_digits_need_no_download(call):
    code, text = call("download", "digits")
    assert code == 2
    assert "mnist" in text


class Short(socketserver.BaseRequestHandler):
    """Promises more than it sends, or speaks no HTTP at all."""

    def handle(self):
        self.request.recv(4096)
        self.request.sendall(self.server.answer)


@pytest.fixture
def server():
    with socketserver.TCPServer(("127.0.0.1", 0), Short) as one:
        thread = threading.Thread(target=one.serve_forever, args=(0.01,))
        thread.start()
        one.url = f"http://127.0.0.1:{one.server_address[1]}/"
        yield one
        one.shutdown()
        thread.join()


ANSWERS = [
    (
        b"HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\nabc",
        "train-images-idx3-ubyte.gz: expected "
        "the file that was published, with MD5 6bbc9ace898e44ae57da46a324031adb, "
        "found 900150983cd2",
    ),
    (b"nonsense\r\n\r\n", "could not be fetched: nonsense"),
    (b"", "could not be fetched: Remote end closed connection"),
    (
        b"HTTP/1.0 503 Busy\r\n\r\n",
        "could not be fetched: HTTP Error 503: Busy. Try again, or put",
    ),
]


@pytest.mark.parametrize(("answer", "message"), ANSWERS, ids=range(len(ANSWERS)))
def test_a_broken_server(answer, message, server, tmp_path):
    server.answer = answer
    with pytest.raises(BenchmarkError, match=re.escape(message)) as raised:
        download.download("mnist", tmp_path, server.url)
    assert server.url in str(raised.value) or "found 9001" in str(raised.value)
    del raised
    gc.collect()  # a connection that was left open would warn here
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("url", ["ftpp://nowhere/", "http://:x/"])
def test_an_address_that_is_none(url, tmp_path):
    with pytest.raises(
        BenchmarkError, match=f"^{url}train-images.* could not be fetched: "
    ):
        download.download("mnist", tmp_path, url)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
