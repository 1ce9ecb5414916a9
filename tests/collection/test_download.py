"""The download: from a real server that misbehaves in every known way, it is whole, to be gone on with, or refused."""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mgc.collection import download as module
from mgc.collection.download import Downloaded, download
from mgc.core.errors import InputError, RunError

NAME = "fma_small"
CLIPS = {f"{i // 4:03d}/{i:06d}.mp3": random.Random(i).randbytes(40_000) for i in range(12)}
FILES = {"README.txt": b"This archive is part of the FMA.\n", "checksums": b"", **CLIPS}


def packed(members):
    """The bytes of a zip of (name, content), compressed as FMA's are."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_BZIP2) as zipped:
        for name, content in members:
            zipped.writestr(name, content)
    return buffer.getvalue()


GOOD = packed([(f"{NAME}/{name}", content) for name, content in FILES.items()])
OTHER = bytes(byte ^ 1 for byte in GOOD)


def sha1(content):
    return hashlib.sha1(content).hexdigest()


def expect(monkeypatch, content):
    monkeypatch.setitem(module.ARCHIVES, NAME, sha1(content))


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """The archive to expect is ``GOOD``; nobody waits."""
    expect(monkeypatch, GOOD)
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)
    monkeypatch.setenv("no_proxy", "*")


class Server(ThreadingHTTPServer):
    """Answers its requests by the functions of ``script``, the last of which answers all that follow."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.asked, self.paths, self.gate = [reply(GOOD)], [], [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/fma/"

    def handle_error(self, *_):
        """A client that was killed is no news."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        self.server.paths.append(self.path)
        script = self.server.script
        answer = script.pop(0) if len(script) > 1 else script[0]
        answer(self, int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0)

    def log_message(self, *_):
        pass


def reply(content, *, stop=None, ranges=True, hang=False, length=True):
    """Serve ``content`` from the byte asked for.

    ``stop``: break off after so many bytes; ``ranges``: heed them; ``hang``: do not break off but fall silent;
    ``length``: say how long it is.
    """

    def answer(handler, start):
        start = start if ranges else 0
        if start and start >= len(content):
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if length:
            handler.send_header("Content-Length", str(len(content) - start))
        handler.send_header("ETag", f'"{sha1(content)}"')
        handler.end_headers()
        handler.wfile.write(content[start:][:stop])
        handler.wfile.flush()
        if hang:
            handler.server.gate.wait(60)

    return answer


def refuse(code, **headers):
    def answer(handler, _):
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()

    return answer


@pytest.fixture
def server():
    with Server() as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.gate.set()
        server.shutdown()


@pytest.fixture
def part(tmp_path):
    return tmp_path / f".{NAME}.zip.part"


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def assert_whole(root):
    assert contents(root / NAME) == FILES
    assert os.listdir(root) == [NAME]


@contextmanager
def fails(error, *words):
    """The block raises ``error`` with one line that holds all ``words``."""
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if str(word) not in message] == [], message


# What is to be had of a good server


def test_the_folder_is_whole_and_nothing_else_stays(server, tmp_path):
    result = download(NAME, tmp_path, base_url=server.url)
    assert_whole(tmp_path)
    assert server.paths == [f"/fma/{NAME}.zip"]
    assert result == Downloaded(
        NAME, str(tmp_path / NAME), len(GOOD), len(FILES), already=False, seconds=result.seconds
    )
    assert result.seconds >= 0


def test_a_folder_that_is_there_is_left_as_it_is_without_asking_any_server(server, tmp_path, part):
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "mine.txt").write_text("mine")
    part.write_bytes(GOOD)  # a call was killed between the folder's rename and the end
    result = download(NAME, tmp_path, base_url=server.url)
    assert (result.already, result.bytes, result.files) == (True, 0, 1)
    assert contents(tmp_path) == {f"{NAME}/mine.txt": b"mine"}
    assert server.asked == []


def test_an_empty_folder_is_not_taken_for_the_archive(server, tmp_path):
    (tmp_path / NAME).mkdir()
    assert download(NAME, tmp_path, base_url=server.url).already is False
    assert_whole(tmp_path)


def test_both_halves_of_the_work_show_how_far_they_are_up_to_their_end(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "MB", 1000)
    server.script = [reply(GOOD, stop=100_000), reply(GOOD)]
    download(NAME, tmp_path, base_url=server.url)
    unpacked, whole = sum(map(len, FILES.values())) // 1000, len(GOOD) // 1000
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith(f"download {NAME}.zip: {whole}/{whole} MB, ")]
    assert [line for line in lines if line.startswith(f"unpack {NAME}: {unpacked}/{unpacked} MB, ")]


def test_a_root_that_is_not_there_is_made_and_a_slash_more_or_less_is_the_same(server, tmp_path):
    download(NAME, tmp_path / "a" / "b", base_url=server.url.rstrip("/"))
    assert_whole(tmp_path / "a" / "b")


def test_a_redirect_within_the_web_is_followed_with_its_range(server, tmp_path, part):
    part.write_bytes(GOOD[:1000])
    server.script = [refuse(302, Location="/elsewhere.zip"), reply(GOOD)]
    download(NAME, tmp_path, base_url=server.url)
    assert_whole(tmp_path)
    assert server.paths[1] == "/elsewhere.zip"
    assert server.asked == ["bytes=1000-"] * 2


def test_importing_it_loads_none_of_the_heavy_libraries():
    heavy = {"ray", "torch", "mlflow", "pyarrow", "numpy"}
    code = f"import sys, mgc.collection.download; sys.exit(len({heavy!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


# Connections that break


def test_a_connection_that_keeps_breaking_is_made_anew_for_as_long_as_there_is_progress(server, tmp_path):
    step = len(GOOD) // 12
    assert len(GOOD) // step > 2 * module.RETRIES
    server.script = [reply(GOOD, stop=step)]
    assert download(NAME, tmp_path, base_url=server.url).bytes == len(GOOD)
    assert_whole(tmp_path)
    assert server.asked == [None] + [f"bytes={at}-" for at in range(step, len(GOOD), step)]


def test_without_progress_it_gives_up_and_the_next_call_goes_on_from_there(server, tmp_path, part):
    server.script = [reply(GOOD, stop=50_000), reply(GOOD, stop=0)]
    with fails(RunError, server.url, "50,000 bytes"):
        download(NAME, tmp_path, base_url=server.url)
    assert len(server.asked) == 1 + module.RETRIES
    assert part.read_bytes() == GOOD[:50_000]
    server.script = [reply(GOOD)]
    assert download(NAME, tmp_path, base_url=server.url).bytes == len(GOOD) - 50_000
    assert_whole(tmp_path)
    assert server.asked[-1] == "bytes=50000-"


def test_the_same_bytes_over_and_over_are_no_progress(server, tmp_path):
    server.script = [reply(GOOD, stop=50_000, ranges=False)]
    with fails(RunError, "run it again"):
        download(NAME, tmp_path, base_url=server.url)
    assert len(server.asked) == 1 + module.RETRIES


@pytest.mark.parametrize("stop", [0, 50_000])
def test_a_silent_server_counts_as_a_broken_connection(server, tmp_path, monkeypatch, part, stop):
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(module, "RETRIES", 0)
    server.script = [reply(GOOD, stop=stop, hang=True)]
    with fails(RunError, "timed out", f"{stop:,} bytes"):
        download(NAME, tmp_path, base_url=server.url)
    assert part.exists() == (stop > 0)
    server.script = [reply(GOOD)]
    assert download(NAME, tmp_path, base_url=server.url).bytes == len(GOOD) - stop
    assert_whole(tmp_path)


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.script = [refuse(503), refuse(429), reply(GOOD)]
    download(NAME, tmp_path, base_url=server.url)
    assert_whole(tmp_path)


def test_nobody_listening_is_a_failure_of_the_work_and_leaves_nothing(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with fails(RunError, f"127.0.0.1:{port}", "refused"):
        download(NAME, tmp_path / "root", base_url=f"http://127.0.0.1:{port}/")
    assert os.listdir(tmp_path) == []


def test_a_name_server_lost_on_the_way_is_waited_for(server, tmp_path, monkeypatch):
    server.script = [reply(GOOD, stop=50_000), reply(GOOD)]
    resolve, calls = socket.getaddrinfo, []

    def flaky(*arguments, **more):
        calls.append(arguments)
        if len(calls) == 2:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return resolve(*arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", flaky)
    download(NAME, tmp_path, base_url=server.url)
    assert_whole(tmp_path)
    assert len(calls) == 3


# Servers that are wrong or lie about ranges


def test_a_server_without_ranges_means_to_start_over(server, tmp_path, part):
    part.write_bytes(OTHER[:50_000])
    server.script = [reply(GOOD, ranges=False)]
    assert download(NAME, tmp_path, base_url=server.url).bytes == len(GOOD)
    assert_whole(tmp_path)


@pytest.mark.parametrize("length", [len(GOOD), len(GOOD) + 1])
def test_a_part_with_no_byte_behind_it_is_started_over(server, tmp_path, part, length):
    part.write_bytes((OTHER + b"+")[:length])
    download(NAME, tmp_path, base_url=server.url)
    assert_whole(tmp_path)
    assert server.asked == [f"bytes={length}-", None]


def test_a_wrong_file_is_removed_and_both_sums_are_told(server, tmp_path):
    server.script = [reply(OTHER), reply(GOOD)]
    with fails(RunError, f"{server.url}{NAME}.zip", sha1(GOOD), sha1(OTHER)):
        download(NAME, tmp_path, base_url=server.url)
    assert os.listdir(tmp_path) == []
    download(NAME, tmp_path, base_url=server.url)
    assert_whole(tmp_path)


def test_a_right_range_of_wrong_bytes_is_never_unpacked(server, tmp_path, part):
    part.write_bytes(GOOD[:50_000])
    server.script = [reply(OTHER), reply(GOOD)]
    with fails(RunError, sha1(GOOD[:50_000] + OTHER[50_000:])):
        download(NAME, tmp_path, base_url=server.url)
    assert os.listdir(tmp_path) == []
    assert download(NAME, tmp_path, base_url=server.url).bytes == len(GOOD)
    assert_whole(tmp_path)


def test_a_file_that_changes_between_two_requests_is_never_unpacked(server, tmp_path):
    server.script = [reply(OTHER, stop=50_000), reply(GOOD)]
    with fails(RunError, "sha1"):
        download(NAME, tmp_path, base_url=server.url)
    assert server.asked == [None, "bytes=50000-"]
    assert os.listdir(tmp_path) == []
    download(NAME, tmp_path, base_url=server.url)
    assert_whole(tmp_path)


def test_a_whole_part_is_unpacked_without_asking_any_server(server, tmp_path, part):
    part.write_bytes(GOOD)
    assert download(NAME, tmp_path, base_url=server.url).bytes == 0
    assert_whole(tmp_path)
    assert server.asked == []


# What the user gave cannot be used


def test_an_unknown_name_is_refused_with_those_there_are(server, tmp_path):
    with fails(InputError, "`name=fma_tiny`", "fma_small", "fma_medium", "fma_large", "fma_metadata"):
        download("fma_tiny", tmp_path, base_url=server.url)


@pytest.mark.parametrize(
    "url", ["", "example.org/fma/", "ftp://example.org/fma/", "file:///tmp/", "http://", "http:///fma/", "http://[::1/"]
)
def test_what_is_no_web_address_is_refused(tmp_path, url):
    with fails(InputError, f"`base_url={url}`", "http"):
        download(NAME, tmp_path / "root", base_url=url)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:port/", "http://127.0.0.1/a b", f"http://{'a' * 70}.org/"])
def test_a_web_address_that_cannot_be_asked_is_refused(tmp_path, url):
    with fails(InputError, url.rstrip("/"), "`base_url`"):
        download(NAME, tmp_path / "root", base_url=url)
    assert os.listdir(tmp_path) == []


def test_an_unknown_host_is_refused(tmp_path, monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with fails(InputError, "http://nowhere.invalid/", "unknown host", "`base_url`"):
        download(NAME, tmp_path / "root", base_url="http://nowhere.invalid/")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("code", [403, 404, 410])
def test_a_server_without_the_archive_is_refused_and_what_had_come_is_kept(server, tmp_path, part, code):
    server.script = [refuse(code)]
    with fails(InputError, f"{server.url}{NAME}.zip", code, "`base_url`"):
        download(NAME, tmp_path / "root", base_url=server.url)
    assert os.listdir(tmp_path) == []
    part.write_bytes(GOOD[:1000])
    with fails(InputError, code):
        download(NAME, tmp_path, base_url=server.url)
    assert part.read_bytes() == GOOD[:1000]
    assert len(server.asked) == 2


@pytest.mark.parametrize("location", ["ftp://127.0.0.1:9/a.zip", "file:///etc/hostname", "data:text/plain,a"])
def test_a_redirect_out_of_the_web_is_refused(server, tmp_path, location):
    server.script = [refuse(302, Location=location)]
    with fails(InputError, server.url, location):
        download(NAME, tmp_path / "root", base_url=server.url)
    assert os.listdir(tmp_path) == []


def test_a_server_that_does_not_say_how_long_the_archive_is_is_refused(server, tmp_path):
    server.script = [reply(GOOD, length=False)]
    with fails(InputError, "how long", "`base_url`"):
        download(NAME, tmp_path, base_url=server.url)
    assert os.listdir(tmp_path) == []


def test_a_root_that_is_a_file_is_refused(server, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for root in (file, file / "below"):
        with fails(InputError, f"`root={root}`"):
            download(NAME, root, base_url=server.url)
    assert file.read_text() == "mine"
    assert server.asked == []


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc, where nobody can write a file")
def test_a_root_that_cannot_be_written_to_is_refused(server):
    for root in ("/proc", "/proc/root-of-fma"):
        with fails(InputError, f"`root={root}`"):
            download(NAME, root, base_url=server.url)
    assert server.asked == []


@pytest.mark.parametrize("make", [lambda path: path.write_text("mine"), lambda path: path.symlink_to("nowhere")])
def test_a_file_or_a_dead_link_in_the_folders_place_is_refused(server, tmp_path, make):
    make(tmp_path / NAME)
    with fails(InputError, tmp_path / NAME, "no folder", "`root`"):
        download(NAME, tmp_path, base_url=server.url)
    assert server.asked == []


# Two at once


def test_a_second_download_of_the_same_is_refused_and_harms_nothing(server, tmp_path, part):
    server.script = [reply(GOOD, stop=50_000, hang=True), reply(GOOD)]
    results = []
    first = threading.Thread(target=lambda: results.append(download(NAME, tmp_path, base_url=server.url)))
    first.start()
    wait_for(lambda: part.exists() and part.stat().st_size == 50_000)
    with fails(InputError, part, "another process"):
        download(NAME, tmp_path, base_url=server.url)
    server.gate.set()
    first.join(30)
    assert results[0].bytes == len(GOOD)
    assert_whole(tmp_path)


def test_a_part_that_its_holder_removes_while_we_open_it_is_not_written_to(server, tmp_path, part, monkeypatch):
    flock = module.fcntl.flock
    monkeypatch.setattr(module.fcntl, "flock", lambda *arguments: (part.unlink(), flock(*arguments)))
    with fails(InputError, part, "another process"):
        download(NAME, tmp_path, base_url=server.url)
    assert server.asked == []


def test_what_another_call_made_while_we_came_to_our_turn_is_taken(server, tmp_path, monkeypatch):
    flock, made = module.fcntl.flock, tmp_path / NAME / "README.txt"
    monkeypatch.setattr(
        module.fcntl, "flock", lambda *arguments: (made.parent.mkdir(), made.write_text("theirs"), flock(*arguments))
    )
    assert download(NAME, tmp_path, base_url=server.url).files == 1
    assert contents(tmp_path) == {f"{NAME}/README.txt": b"theirs"}
    assert server.asked == []


# A full disk


def test_too_little_room_is_told_before_anything_comes(server, tmp_path, monkeypatch):
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=2 * len(GOOD) - 1))
    with fails(RunError, f"`root={tmp_path}`", "room"):
        download(NAME, tmp_path, base_url=server.url)
    assert os.listdir(tmp_path) == []


def test_too_little_room_to_unpack_is_told_before_anything_is_written_and_the_archive_is_kept(
    server, tmp_path, part, monkeypatch
):
    part.write_bytes(GOOD)
    usage, needed = module.shutil.disk_usage(tmp_path), sum(map(len, FILES.values()))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    with fails(RunError, f"`root={tmp_path}`", "room"):
        download(NAME, tmp_path, base_url=server.url)
    assert os.listdir(tmp_path) == [part.name]
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=needed))
    download(NAME, tmp_path, base_url=server.url)
    assert_whole(tmp_path)


LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"
"""No file can grow beyond so many bytes: a write fails for real, in its middle, as on a full disk."""


@pytest.mark.parametrize("limit", [60_000, len(GOOD) - 1])
def test_a_write_that_fails_in_the_download_keeps_what_came(server, tmp_path, part, limit):
    with child(LIMITED.format(limit), tmp_path, server.url) as process:
        told = process.communicate()[1].splitlines()[-1]
    assert told.startswith(f"mgc.core.errors.RunError: {tmp_path / NAME}: File too large; ")
    assert part.read_bytes() == GOOD[:limit]
    download(NAME, tmp_path, base_url=server.url)
    assert_whole(tmp_path)


def test_a_write_that_fails_in_the_unpacking_keeps_the_archive_and_nothing_else(server, tmp_path, part, monkeypatch):
    content = packed([(f"{NAME}/silence.mp3", bytes(100_000))])
    expect(monkeypatch, content)
    server.script = [reply(content)]
    with child(LIMITED.format(60_000), tmp_path, server.url) as process:
        told = process.communicate()[1].splitlines()[-1]
    assert told.startswith("mgc.core.errors.RunError: ")
    assert "File too large" in told
    assert os.listdir(tmp_path) == [part.name]
    assert part.read_bytes() == content
    assert download(NAME, tmp_path, base_url=server.url).bytes == 0
    assert contents(tmp_path / NAME) == {"silence.mp3": bytes(100_000)}


# Archives that cannot be unpacked, with the right sha1


def test_folders_in_the_archive_are_made(server, tmp_path, monkeypatch):
    content = packed([(f"{NAME}/", b""), (f"{NAME}/000/", b""), (f"{NAME}/empty/", b""), (f"{NAME}/000/a.mp3", b"a")])
    expect(monkeypatch, content)
    server.script = [reply(content)]
    assert download(NAME, tmp_path, base_url=server.url).files == 1
    assert contents(tmp_path) == {f"{NAME}/000/a.mp3": b"a"}
    assert (tmp_path / NAME / "empty").is_dir()


@pytest.mark.parametrize("content", [GOOD[:-30], b"no zip at all", b"", packed([("other/a.mp3", b"a")])], ids=len)
def test_what_cannot_be_unpacked_fails_and_leaves_no_folder(server, tmp_path, monkeypatch, content):
    expect(monkeypatch, content)
    server.script = [reply(content)]
    with fails(RunError, NAME):
        download(NAME, tmp_path, base_url=server.url)
    assert set(os.listdir(tmp_path)) <= {f".{NAME}.zip.part"}


def test_a_python_without_bzip2_says_so_and_the_archive_is_kept(server, tmp_path, part, monkeypatch):
    monkeypatch.setattr(zipfile, "bz2", None)
    with fails(RunError, part, "sha1 is right", "bz2"):
        download(NAME, tmp_path, base_url=server.url)
    assert part.read_bytes() == GOOD
    assert os.listdir(tmp_path) == [part.name]


# SIGKILL of a real process


@contextmanager
def child(prelude, root, url, **popen):
    """A process of its own that runs ``prelude`` and then the download of the archive that this process expects."""
    code = (
        "import sys\nfrom mgc.collection import download as module\n"
        f"module.ARCHIVES[{NAME!r}] = {module.ARCHIVES[NAME]!r}\n"
        f"{prelude}\nmodule.download({NAME!r}, {str(root)!r}, base_url={url!r})"
    )
    command, here = [sys.executable, "-c", code], Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=here, stdout=-1, stderr=-1, text=True, **popen) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition):
    """Until ``condition()``; a test that waits for a minute has failed."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_killed_in_the_middle_of_the_download_the_same_command_goes_on(server, tmp_path, part):
    server.script = [reply(GOOD, stop=200_000, hang=True), reply(GOOD)]
    with child("", tmp_path, server.url) as process:
        wait_for(lambda: part.exists() and part.stat().st_size == 200_000)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert download(NAME, tmp_path, base_url=server.url).bytes == len(GOOD) - 200_000
    assert server.asked == [None, "bytes=200000-"]
    assert_whole(tmp_path)


STUCK = """
class Stuck(module.Progress):
    def advance(self, count=1, note=""):
        super().advance(count, note)
        if self.title.startswith("unpack") and 2 * self.done > self.total:
            print("stuck", flush=True)
            __import__("time").sleep(60)
module.MB, module.Progress = 1000, Stuck
"""


def test_killed_in_the_middle_of_the_unpacking_the_same_command_unpacks_anew(server, tmp_path, part):
    with child(STUCK, tmp_path, server.url) as process:
        assert process.stdout.readline() == "stuck\n"
        process.kill()
        assert process.wait() == -signal.SIGKILL
    left = tmp_path / f".{NAME}.unpacking"
    assert sorted(os.listdir(tmp_path)) == sorted([part.name, left.name])
    assert 1 < len(contents(left)) < len(FILES)
    (left / "stray.mp3").write_text("of an older call")
    assert download(NAME, tmp_path, base_url=server.url).bytes == 0
    assert_whole(tmp_path)
    assert len(server.asked) == 1


KILLED_BEFORE_STEP = """
import os
left, root = {step}, {root!r}
def hook(event, arguments):
    global left
    if event == "socket.connect" or event in ("open", "os.mkdir", "os.rename", "os.remove", "fcntl.flock", "os.rmdir"):
        if event in ("socket.connect", "fcntl.flock") or str(arguments[0]).startswith(root):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), 9)
sys.addaudithook(hook)
"""


def test_killed_before_any_of_its_steps_the_same_command_ends_well(server, tmp_path, monkeypatch):
    content = packed([(f"{NAME}/000/a.mp3", b"a"), (f"{NAME}/checksums", b"b")])
    expect(monkeypatch, content)
    server.script = [reply(content)]
    killed = 0
    while True:
        root = tmp_path / str(killed)
        with child(KILLED_BEFORE_STEP.format(step=killed, root=str(root)), root, server.url) as process:
            if process.wait() == 0:
                break
            assert process.returncode == -signal.SIGKILL, process.stderr.read()
        download(NAME, root, base_url=server.url)
        assert contents(root) == {f"{NAME}/000/a.mp3": b"a", f"{NAME}/checksums": b"b"}
        assert os.listdir(root) == [NAME]
        killed += 1
    assert killed >= 10
