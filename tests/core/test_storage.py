"""A folder is the same on a disk and in an object store: one contract, tried on both, the store by its own protocol."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import boto3
import pyarrow as pa
import pytest
from moto.s3.exceptions import AccessForbidden
from moto.s3.models import S3Backend
from moto.server import ThreadedMotoServer

from mgc.core import lease
from mgc.core.disk import LOCK
from mgc.core.errors import InputError, RunError, StoreError
from mgc.core.storage import Folder

BUCKET = "music"
BIG = 24 << 20
"""Bytes that go to the store in three parts."""
ODD = "ü &?#%20 +.txt"
LEFTOVER = f".manifest.json.{'0' * 32}.tmp"


@pytest.fixture(scope="module")
def server():
    """An S3 server on loopback with one bucket."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    client(server).create_bucket(Bucket=BUCKET)
    yield server
    server.stop()


def client(server):
    """Another eye on the store than the one under test."""
    keys = {"aws_access_key_id": "KEY", "aws_secret_access_key": "SECRET", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url="http://{}:{}".format(*server.get_host_and_port()), **keys)


def address(server, path, *, bucket=BUCKET):
    """The URI of a path in the store, with all that is needed to reach it."""
    endpoint = "{}:{}".format(*server.get_host_and_port())
    return f"s3://KEY:SECRET@{bucket}/{path}?endpoint_override={endpoint}&scheme=http&region=us-east-1"


@pytest.fixture
def store(server):
    """An empty folder in the store."""
    return Folder.at(address(server, f"{uuid.uuid4().hex}/folder"))


@pytest.fixture
def disk(tmp_path):
    """An empty folder on a disk."""
    (tmp_path / "folder").mkdir()
    return Folder.at(tmp_path / "folder")


@pytest.fixture(params=["disk", "store"])
def folder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def everything(server):
    """A function that says what is really in a folder: bytes by path, hidden files included."""

    def look(folder):
        if folder.path:
            found = (path for path in folder.path.rglob("*") if path.is_file())
            return {path.relative_to(folder.path).as_posix(): path.read_bytes() for path in found}
        s3, prefix = client(server), folder._objects.key("").removeprefix(f"{BUCKET}/") + "/"
        found = s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return {
            entry["Key"].removeprefix(prefix): s3.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read()
            for entry in found
            if not entry["Key"].endswith("/")  # of pyarrow, for the folder of a file that it has deleted
        }

    return look


def fill(folder, *names):
    for name in names:
        folder.make(name.rpartition("/")[0])
        folder.write(name, name.encode())


def python(code, *arguments, **options):
    """Another process; it has said ``ready`` when this returns."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True, **options
    )
    assert process.stdout.readline() == "ready\n"
    return process


# Looking


def test_what_is_there_is_seen(folder):
    fill(folder, "b.txt", "a/x.mp3", "a/deep/y.mp3", ODD, ".hidden", "a/.hidden/z.mp3", "a/.z.mp3")
    assert [folder.kind(name) for name in ("", "a", "a/deep", "b.txt", "a/x.mp3", ODD)] == ["folder"] * 3 + ["file"] * 3
    assert folder.files() == [".hidden", "b.txt", ODD]
    assert folder.files("a") == [".z.mp3", "x.mp3"]
    assert sorted(folder.walk()) == ["a/deep/y.mp3", "a/x.mp3", "b.txt", ODD]
    names = ["a/deep/y.mp3", "b.txt", "absent", "a/absent", "absent/x", ODD, "a/x.mp3", "b.txt", ".hidden"]
    assert folder.sizes(iter(names)) == [12, 5, -1, -1, -1, len(ODD.encode()), 7, 5, 7]
    assert folder.sizes([]) == []
    written, absent_file = folder.modified([*folder.files()[:1], "nowhere"])
    assert abs(written - time.time()) < 60
    assert absent_file == 0


def test_what_is_not_there_is_none_and_empty_and_not_found(folder):
    absent = folder / "absent"
    assert absent.kind() is absent.kind("x") is None
    assert absent.files() == absent.files("x") == list(absent.walk()) == []
    assert absent.sizes(["x", "x/y"]) == [-1, -1]
    for look in (absent.open, absent.read, absent.random_access, folder.open, folder.read, folder.random_access):
        with pytest.raises(FileNotFoundError):
            look("x")
    absent.remove("x")
    absent.remove_temporary_files()


def test_names_that_begin_alike_are_told_apart(folder):
    fill(folder, "set/shards/1", "set/shards.txt", "set2/x", "settings")
    assert (folder / "set").files("shards") == ["1"]
    assert sorted((folder / "set").walk()) == ["shards.txt", "shards/1"]
    assert [folder.kind(name) for name in ("se", "set", "set/shards")] == [None, "folder", "folder"]


def test_links_to_folders_are_followed_once_and_a_loop_of_them_ends(disk, tmp_path):
    fill(disk, "a/x", "b")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "y").touch()
    (disk.path / "a" / "loop").symlink_to(disk.path)
    (disk.path / "c").symlink_to(tmp_path / "elsewhere")
    (disk.path / "d").symlink_to(tmp_path / "elsewhere")
    (disk.path / "dangling").symlink_to("nowhere")
    assert [path for path in disk.walk() if path != "dangling"] == ["b", "a/x", "c/y"]
    assert disk.sizes(["dangling", "c/y", "a\0b"]) == [-1, 0, -1]


def test_a_folder_of_the_store_may_be_its_whole_bucket(server):
    client(server).create_bucket(Bucket="bucket2")
    folder = Folder.at(address(server, "", bucket="bucket2"))
    assert (folder.name, folder.kind(), folder.files()) == ("bucket2", "folder", [])
    folder.write("a/b", b"12")
    assert (list(folder.walk()), folder.sizes(["a/b"]), folder.read("a/b")) == (["a/b"], [2], b"12")


# Reading


def test_an_open_file_is_a_real_one_and_outlives_its_name(folder):
    folder.write("clip.wav", b"0123456789")
    with folder.open("clip.wav") as file:
        folder.remove("clip.wav")
        assert os.pread(file.fileno(), 3, 4) == b"456"
        assert file.read(2) == b"01"
        assert file.seek(0) == 0
        assert file.readall() == b"0123456789"
    assert file.closed


def test_random_access_reads_the_part_that_is_asked_for(folder):
    folder.write("x", b"0123456789")
    with folder.random_access("x") as file:
        assert (file.size(), file.read_at(3, 4)) == (10, b"456")


def test_a_folder_is_not_a_file_to_be_read(folder):
    fill(folder, "a/x")
    for look in (folder.open, folder.read, folder.random_access):
        with pytest.raises(OSError, match=r"(?i)does not exist|not a regular file|is a directory"):
            look("a")


@pytest.mark.timeout(20)
def test_a_pipe_is_refused_and_never_waited_for(disk):
    os.mkfifo(disk.path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        disk.open("pipe")
    with pytest.raises(OSError, match="not a regular file"):
        disk.open("")


# Writing


@pytest.mark.parametrize("data", [b"", b"x", pa.py_buffer(b"arrow"), b"123" * (BIG // 3)], ids=len)
def test_what_is_written_is_all_there_and_replaces_what_was(folder, everything, data):
    for before in (b"old", b"old" * 100_000):
        folder.write("x", before)
        folder.write("x", data)
        assert folder.read("x") == bytes(data)
        assert everything(folder) == {"x": bytes(data)}


def test_a_folder_is_made_with_those_above_it_and_again(folder, everything):
    for _ in range(2):
        folder.make("a/b")
        (folder / "c/d").make()
    folder.write("a/b/x", b"1")
    (folder / "c/d").write("x", b"2")
    assert everything(folder) == {"a/b/x": b"1", "c/d/x": b"2"}


def test_a_file_is_removed_and_others_stay(folder, everything):
    fill(folder, "a/x", "a/y", "z")
    folder.remove("a/x")
    folder.remove("a/x")
    # pyarrow puts an empty object in the place of a folder that might have become empty
    assert {name: data for name, data in everything(folder).items() if name != "a/"} == {"a/y": b"a/y", "z": b"z"}
    assert folder.kind("a/x") is None
    assert (folder.files("a"), sorted(folder.walk())) == (["y"], ["a/y", "z"])


def test_a_write_that_fails_on_a_disk_leaves_what_was(disk, everything, monkeypatch):
    disk.write("x", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", lambda path, data: path.touch() or os.stat("/nowhere"))
        with pytest.raises(OSError, match="nowhere"):
            disk.write("x", b"new")
    assert everything(disk) == {"x": b"old"}
    with pytest.raises(FileNotFoundError):
        disk.write("absent/x", b"new")
    assert everything(disk) == {"x": b"old"}


@pytest.mark.parametrize("failing_part", [1, 2, 3])
def test_a_write_that_fails_in_the_store_leaves_what_was(store, everything, monkeypatch, failing_part):
    """The parts before the failing one must not become the file."""
    upload, failed = S3Backend.upload_part, []

    def refuse(self, bucket_name, multipart_id, part_id, value):
        if part_id == failing_part:
            failed.append(part_id)
            raise AccessForbidden("enough")
        return upload(self, bucket_name, multipart_id, part_id, value)

    store.write("x", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(S3Backend, "upload_part", refuse)
        with pytest.raises(StoreError, match=r"UploadPart"):
            store.write("x", bytes(BIG))
    assert failed
    assert everything(store) == {"x": b"old"}


def test_a_reader_sees_one_of_two_writings_and_never_a_mixture(folder):
    values = [bytes([i]) * 2_000_000 for i in range(2)]
    folder.write("x", values[0])
    done = threading.Event()

    def write():
        for i in range(1, 20):
            folder.write("x", values[i % 2])
        done.set()

    with ThreadPoolExecutor(1) as executor:
        writing = executor.submit(write)
        seen = set()
        while not done.is_set() and not writing.done():
            seen.add(folder.read("x"))
        writing.result()
    assert seen <= set(values)
    assert len(seen) == 2


WRITE_FOR_EVER = """
import sys
from mgc.core.storage import Folder
folder = Folder.at(sys.argv[1])
print("ready", flush=True)
i = 0
while True:
    i = 1 - i
    folder.write("x", bytes([i]) * int(sys.argv[2]))
"""


def test_a_process_killed_in_the_middle_of_a_write_leaves_a_whole_file(folder, server, everything):
    """Killed when a part of the new file can be seen to be on its way."""

    def on_its_way():
        if folder.path:
            return [path for path in folder.path.glob(".x.*.tmp") if path.stat().st_size]
        uploads = client(server).list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
        key = folder._objects.key("x").removeprefix(f"{BUCKET}/")
        return [upload for upload in uploads if upload["Key"] == key]

    folder.write("x", bytes(BIG))
    interrupted = False
    for _ in range(20):
        writer = python(WRITE_FOR_EVER, folder.uri, BIG)
        end = time.monotonic() + 10
        try:
            while time.monotonic() < end:
                try:
                    if on_its_way():
                        break
                except FileNotFoundError:  # renamed since
                    continue
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        data = folder.read("x")
        assert len(data) == BIG
        assert len(set(data)) == 1
        interrupted = bool(on_its_way())
        if interrupted:
            break
    assert interrupted
    assert (folder.files(), list(folder.walk())) == ([*[p.name for p in on_its_way() if folder.path], "x"], ["x"])
    folder.remove_temporary_files()
    assert list(everything(folder)) == ["x"]


def test_our_temporary_files_are_removed_and_nothing_else(disk, everything):
    others = [".lock", ".x.tmp", "x.tmp", f".x.{'g' * 32}.tmp", f"x.{'0' * 32}.tmp", f".x.{'0' * 31}.tmp", ".git/x"]
    fill(disk, *others, LEFTOVER, f"shards/{LEFTOVER}", f"other/{LEFTOVER}")
    (disk.path / "shards" / f".folder.{'1' * 32}.tmp").mkdir()
    disk.remove_temporary_files()
    assert everything(disk).keys() == {*others, f"shards/{LEFTOVER}", f"other/{LEFTOVER}"}
    disk.remove_temporary_files("shards")
    assert everything(disk).keys() == {*others, f"other/{LEFTOVER}"}


# Two writers


HOLD = """
import sys, time
from mgc.core.storage import Folder
with Folder.at(sys.argv[1]).claim("`out`"):
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_told_who_holds_the_folder_and_a_killed_one_holds_nothing(disk, everything):
    holder = python(HOLD, disk)
    try:
        with pytest.raises(InputError) as caught, disk.claim("`out`"):
            pytest.fail("held twice")
        message = str(caught.value)
        assert message.startswith(f"`out` {disk}: process {holder.pid} on {socket.gethostname()} is writing it; ")
        assert len(message.splitlines()) == 1
        assert list(everything(disk)) == [LOCK]
    finally:
        holder.kill()
        holder.wait()
    assert list(everything(disk)) == [LOCK]  # stale, which blocks nobody
    with disk.claim("`out`"):
        assert everything(disk)[LOCK].decode() == f"process {os.getpid()} on {socket.gethostname()}\n"
    assert everything(disk) == {}


def test_a_claim_ends_with_an_error_inside_it(disk, everything):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), disk.claim("`out`"):
            raise ZeroDivisionError
    assert everything(disk) == {}


CLAIM_OFTEN = """
import os, sys
from mgc.core.errors import InputError
from mgc.core.storage import Folder
folder = Folder.at(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
refused = 0
for _ in range(100):
    while True:
        try:
            with folder.claim("`out`"):
                os.close(os.open(sys.argv[2], os.O_CREAT | os.O_EXCL))  # fails where another one is inside
                os.unlink(sys.argv[2])
        except InputError:
            refused += 1
        else:
            break
print(refused)
"""


def test_quick_claims_of_several_processes_never_overlap(disk, everything, tmp_path):
    processes = [python(CLAIM_OFTEN, disk, tmp_path / "inside", stdin=subprocess.PIPE) for _ in range(4)]
    for process in processes:
        process.stdin.close()  # all at once
    refused = [int(process.stdout.read()) for process in processes]
    assert [process.wait() for process in processes] == [0] * 4
    assert sum(refused) > 0  # they did meet
    assert everything(disk) == {}


HOLD = """
import sys, time
from mgc.core.storage import Folder
with Folder.at(sys.argv[1]).claim("`out`"):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_folder_of_a_store_has_one_owner_until_it_ends_or_some_seconds_after_it_is_killed(
    store, everything, monkeypatch, capsys
):
    monkeypatch.setattr(lease, "DEAD_SECONDS", 9.0)
    store.write("x", b"1")
    owner = python(HOLD, store.uri)
    claim = store.claim("`out`")
    with (
        pytest.raises(InputError, match=rf"`out` .*process {owner.pid} on .* is writing it; wait until it is done"),
        claim,
    ):
        pass
    owner.kill()
    owner.wait()
    with store.claim("`out`"):
        assert everything(store).keys() == {"x", ".lock"}
    assert "looking for 9 s whether it still is" in capsys.readouterr().err
    assert everything(store) == {"x": b"1"}


# Names


def test_a_path_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    for place in ("sub/set", Path("sub/set"), "./sub/../sub/set/", tmp_path / "sub" / "set"):
        folder = Folder.at(place)
        assert (str(folder), folder.path, folder.name) == (f"{tmp_path}/sub/set", tmp_path / "sub/set", "set")
        assert folder.parent == (Folder.at(tmp_path / "sub"), "set")
    assert str(Folder.at("~/set")) == "/home/somebody/set"
    assert Folder.at(f"file://{tmp_path}/my%20set") == Folder.at(tmp_path / "my set")
    assert (Folder.at("a") / "b/c").path == tmp_path / "a/b/c"
    assert Folder.at(folder) is folder


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_uri_keeps_its_query_and_hides_its_password(slash):
    query = "?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1"
    folder = Folder.at(f"s3://KEY:SEC%2FRET@music/a/my%20set{slash}{query}")
    assert (folder.name, folder.path) == ("my set", None)
    assert str(folder) == f"s3://music/a/my%20set{slash}{query}"
    assert (folder / "b" / "c").uri == f"s3://KEY:SEC%2FRET@music/a/my%20set/b/c{query}"
    above, name = folder.parent
    assert (above.uri, name) == (f"s3://KEY:SEC%2FRET@music/a{query}", "my set")
    for shown in (str(folder), repr(folder), f"{folder / 'b'}", str([above])):
        assert "SEC" not in shown
        assert "KEY" not in shown


def test_a_file_that_a_uri_names_is_found_in_the_folder_above(server, store):
    store.write("clips.csv", b"path,genre")
    above, name = Folder.at((store / "clips.csv").uri).parent
    assert above.read(name) == b"path,genre"


def test_an_at_sign_in_a_key_is_no_password():
    assert str(Folder("s3://music/a@b/c")) == "s3://music/a@b/c"


def test_a_folder_pickles_small_after_it_was_used_and_works(folder):
    folder.write("x", b"1")
    data = pickle.dumps(folder)
    assert len(data) < 300 + len(folder.uri)
    again = pickle.loads(data)
    assert again == folder
    assert again.read("x") == b"1"


# What cannot be used


@pytest.mark.parametrize(
    "uri",
    [
        "abc://KEY:SECRET@music/set",
        "s3://KEY:SECRET@music/set?unknown=1",
        "s3://KEY:SECRET@music/two words",
        "s3://KEY:SEC/RET@music/set",
        "gs://KEY:SECRET@music/set",
        "s3://KEY:SECRET@/set",
        "s3://",
    ],
)
def test_a_uri_that_is_not_understood_is_refused_in_one_line_without_its_password(uri):
    with pytest.raises(InputError) as caught:
        Folder.at(uri)
    message = str(caught.value)
    assert "s3://bucket/folder" in message
    assert len(message.splitlines()) == 1
    assert "KEY" not in message
    assert "RET" not in message


def test_a_bucket_that_is_not_there_holds_nothing_and_cannot_be_written(server):
    folder = Folder.at(address(server, "set", bucket="nowhere"))
    assert (folder.kind(), folder.files(), list(folder.walk()), folder.sizes(["x"])) == (None, [], [], [-1])
    with pytest.raises(InputError, match=r"there is no bucket named nowhere; "):
        folder.make()
    with pytest.raises(StoreError, match=r"NoSuchBucket|NO_SUCH_BUCKET"):
        folder.write("x", b"1")


def test_a_store_that_refuses_is_said_in_one_line(store, monkeypatch):
    store.write("x", b"1")

    def refuse(*arguments, **options):
        raise AccessForbidden("not for you")

    for name in ("head_object", "list_objects", "get_bucket", "delete_object"):
        monkeypatch.setattr(S3Backend, name, refuse)
    looks = (store.kind, store.files, lambda: list(store.walk()), lambda: store.sizes(["x"]), store.make)
    reads = (lambda: store.open("x"), lambda: store.read("x"), lambda: store.random_access("x"))
    for look in (*looks, *reads, lambda: store.remove("x")):
        with pytest.raises(StoreError, match=r"ACCESS_DENIED|403") as caught:
            look()
        assert str(caught.value).startswith(f"{store}: ")
        assert len(str(caught.value).splitlines()) == 1
        assert "SECRET" not in str(caught.value)


def test_a_store_that_does_not_answer_is_said_in_one_line_within_reasonable_time():
    with socket.socket() as taken:  # bound and not listening: nobody else gets the port, and it answers nobody
        taken.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{taken.getsockname()[1]}"
        folder = Folder.at(f"s3://KEY:SECRET@music/set?endpoint_override={endpoint}&scheme=http&region=us-east-1")
        begin = time.monotonic()
        with pytest.raises(StoreError, match="connect") as caught:
            folder.kind()
        assert time.monotonic() - begin < 20
    assert len(str(caught.value).splitlines()) == 1
    assert "SECRET" not in str(caught.value)


def test_a_region_that_nobody_answers_for_is_the_stores_fault_and_not_the_uris(monkeypatch):
    def unreachable(uri):
        raise OSError(f"When resolving region for {uri}: Could not resolve hostname")

    monkeypatch.setattr("pyarrow.fs.FileSystem", SimpleNamespace(from_uri=unreachable))
    with pytest.raises(StoreError, match=r"cannot be reached .*resolving region") as caught:
        Folder.at("s3://KEY:SECRET@music/set")
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(("number", "error"), [(errno.EIO, RunError), (errno.ESTALE, RunError)])
def test_a_disk_that_fails_holds_no_fewer_files_but_ends_the_work(disk, monkeypatch, number, error):
    """No file may be taken for missing, no folder left out, because a network drive is lost for a moment."""
    fill(disk, "a/x.mp3")

    def fail(path, *_, **__):
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        for name in ("stat", "scandir"):
            patch.setattr(os, name, fail)
        for look in (disk.kind, disk.files, lambda: list(disk.walk()), lambda: disk.sizes(["a/x.mp3"])):
            with pytest.raises(error, match=rf"{disk.path}.*: cannot be .* \({os.strerror(number)}\)") as caught:
                look()
            assert not isinstance(caught.value, InputError)


def test_a_folder_that_may_not_be_listed_is_named_and_not_left_out(disk, monkeypatch):
    fill(disk, "a/x.mp3", "b/y.mp3")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/b"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"folder/b: cannot be listed \(Permission denied\)"):
        list(disk.walk())
