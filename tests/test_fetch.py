"What can go wrong between a public address and a checked file, against a server that misbehaves on purpose."
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from ssl_expr import download as download_module
from ssl_expr import fetch as fetch_module
from ssl_expr.download import RemoteFile
from ssl_expr.fetch import cache_folder, checksums, fetch, sources, usage

CONTENT = os.urandom(40_000)
HALF = 20_480  # a whole number of chunks
PATIENCE = 15  # seconds after which a waiting server or test gives up


class Publisher(ThreadingHTTPServer):
    "A server with a list of troubles: each request meets the next one."
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.content, self.troubles, self.requests = {"table.tsv": CONTENT}, [], []
        self.ranges = self.tags = self.honest = True
        self.headers: dict[str, str] = {}
        self.release = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def base(self) -> str: return f"http://127.0.0.1:{self.server_address[1]}"

    def asked(self) -> list[str]: return [request["range"] for request in self.requests]

    def handle_error(self, request, client_address): pass  # clients may hang up


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words): pass

    def do_GET(self):
        server, name = self.server, self.path.rsplit("/", 1)[-1]
        trouble = server.troubles.pop(0) if server.troubles else None
        record = {"name": name, "path": self.path, "range": self.headers.get("Range", ""), "sent": 0}
        server.requests.append(record)
        if callable(trouble): trouble = trouble()
        if isinstance(trouble, int): return self.finish_head(trouble, {"Content-Length": "0"} | server.headers)
        if self.path.startswith("/old/"):
            return self.finish_head(302, {"Location": f"/{name}", "Content-Length": "0"})
        if self.path.startswith("/loop/"):
            return self.finish_head(302, {"Location": self.path, "Content-Length": "0"})
        if name not in server.content: return self.finish_head(404, {"Content-Length": "0"})
        body = server.content[name]
        headers = dict(server.headers)
        tag = f'"{hashlib.md5(body).hexdigest()}"'
        if server.tags: headers["ETag"] = tag
        code, start = 200, 0
        current = not server.honest or self.headers.get("If-Range", tag) == tag
        if server.ranges and record["range"] and current:
            code, start = 206, int(record["range"].removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            if start >= len(body): return self.finish_head(416, {"Content-Length": "0"})
        part = body[start:]
        if trouble == "elsewhere" and code == 206:
            part = body[start - 1024:]
            headers["Content-Range"] = f"bytes {start - 1024}-{len(body) - 1}/{len(body)}"
        if trouble in ("chunked", "endless", "short"): headers["Transfer-Encoding"] = "chunked"
        elif trouble == "silent": headers["Connection"] = "close"
        else: headers["Content-Length"] = str(len(part))
        self.finish_head(code, headers)
        record["sent"] = self.send(part, trouble)

    def finish_head(self, code, headers):
        self.send_response(code)
        for key, value in headers.items(): self.send_header(key, value)
        self.end_headers()

    def send(self, part, trouble) -> int:
        if trouble in ("chunked", "endless", "short"):
            for piece in {"endless": [part]*50, "short": [part[:HALF]]}.get(trouble, [part]):
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
        elif trouble in ("cut", "cut early", "stall"):
            part = part[:5120 if trouble == "cut early" else HALF]
            self.wfile.write(part)
            self.wfile.flush()
            if trouble == "stall": self.server.release.wait(PATIENCE)
            self.close_connection = True
        else:
            self.wfile.write(part)
            self.close_connection = trouble == "silent"
        return len(part)


@pytest.fixture
def publisher():
    server = Publisher()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()


def checksum(content: bytes) -> str: return hashlib.sha256(content).hexdigest()


LENGTH, CHECKSUM = len(CONTENT), checksum(CONTENT)


class Demo:
    "A manifest with one data set, an empty cache, and a quick `fetch` that shows no bar."
    def __init__(self, folder: Path, publisher: Publisher):
        self.manifest, self.base, self.cache = folder/"manifest.json", publisher.base, folder/"cache"
        self.describe()

    def describe(self, size=LENGTH, sha256=CHECKSUM, path="/table.tsv", name="table.tsv", **other):
        file = {"name": name, "address": f"{self.base}{path}", "size": size, "sha256": sha256}
        about = {"title": "", "licence": "", "citation": "", "needs": [], "pattern": ""}
        self.write({"demo": about | {"files": [file]} | other})

    def write(self, manifest: dict): self.manifest.write_text(json.dumps(manifest))

    def fetch(self, source=None, name="demo") -> Path: return fetch(name, source, progress=False)

    @property
    def file(self) -> Path: return self.cache/"demo"/"table.tsv"

    @property
    def arriving(self) -> Path: return self.cache/"demo"/"table.tsv.partial"

    def refuses(self, kind, *words: str, source=None) -> str:
        "The call fails in one sentence that holds these words, and leaves nothing that could be read."
        with pytest.raises(kind) as caught: self.fetch(source)
        said = str(caught.value)
        assert "\n" not in said and all(word in said for word in words), said
        assert not self.file.exists()
        return said

    def start(self, stderr=None) -> subprocess.Popen:
        script = ("import sys; from ssl_expr import download, fetch; known = fetch.sources\n"
                  "download.WAITS, download.CHUNK = (0,)*4, 1024\n"
                  "fetch.sources = lambda: known(sys.argv[1])\n"
                  "fetch.fetch('demo', progress=False)")
        return subprocess.Popen([sys.executable, "-c", script, str(self.manifest)], stderr=stderr)


@pytest.fixture
def demo(tmp_path, publisher, monkeypatch) -> Demo:
    demo = Demo(tmp_path, publisher)
    monkeypatch.setenv("SSL_EXPR_CACHE", str(demo.cache))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("SSL_EXPR_MIRROR", raising=False)
    monkeypatch.setattr(fetch_module, "sources", lambda: sources(demo.manifest))
    monkeypatch.setattr(download_module, "WAITS", (0, 0, 0, 0))
    monkeypatch.setattr(download_module, "TIMEOUTS", (2, 0.3))
    monkeypatch.setattr(download_module, "CHUNK", 1024)
    return demo


def names(folder: Path) -> list[str]: return sorted(path.name for path in folder.iterdir())


def wait_until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


# The server

def test_a_file_arrives_whole_under_its_name_and_is_asked_for_once(demo, publisher):
    assert demo.fetch() == demo.cache/"demo" and demo.fetch() == demo.cache/"demo"
    assert demo.file.read_bytes() == CONTENT and len(publisher.requests) == 1
    assert names(demo.cache/"demo") == [".lock", "table.tsv", "table.tsv.pin.json"]


def test_a_broken_line_is_resumed_where_it_broke(demo, publisher):
    publisher.troubles = ["cut"]
    demo.fetch()
    assert demo.file.read_bytes() == CONTENT
    assert publisher.asked() == ["", f"bytes={HALF}-"] and publisher.requests[1]["sent"] == len(CONTENT) - HALF


def test_a_line_that_keeps_breaking_is_given_up_and_continued_by_the_next_call(demo, publisher):
    publisher.ranges, publisher.troubles = False, ["cut"] * 5 # one that got further, four that did not
    said = demo.refuses(ConnectionError, "table.tsv", publisher.base, "the connection broke off", "later")
    assert len(publisher.requests) == 5 and "5 tries" in said
    assert demo.arriving.stat().st_size == HALF
    publisher.ranges = True
    demo.fetch()
    assert publisher.asked()[-1] == f"bytes={HALF}-" and demo.file.read_bytes() == CONTENT


def test_a_stalled_server_is_left_after_a_while_and_asked_for_the_rest(demo, publisher):
    publisher.troubles = ["stall"]
    demo.fetch()
    assert demo.file.read_bytes() == CONTENT and publisher.asked() == ["", f"bytes={HALF}-"]


def test_a_server_that_only_stalls_is_named(demo, publisher):
    publisher.ranges, publisher.troubles = False, ["stall"] * 9
    demo.refuses(ConnectionError, "table.tsv", "the server stalled")


@pytest.mark.parametrize("code, kind, meaning", [
    (404, FileNotFoundError, "no such file"), (410, FileNotFoundError, "no such file"),
    (403, ConnectionError, "access refused"), (304, ConnectionError, "answer 304")])
def test_what_is_wrong_for_good_is_not_tried_again(demo, publisher, code, kind, meaning):
    publisher.troubles = [code]
    demo.refuses(kind, "table.tsv", publisher.base, meaning, "--from")
    assert len(publisher.requests) == 1


@pytest.mark.parametrize("code", [500, 502, 503, 429, 408])
def test_a_passing_trouble_is_tried_again_after_the_pause_the_server_asks_for(demo, publisher, monkeypatch, code):
    pauses = []
    monkeypatch.setattr(download_module, "time", SimpleNamespace(sleep=pauses.append))
    monkeypatch.setattr(download_module, "WAITS", (1, 2, 20, 40))
    publisher.troubles, publisher.headers = [code, code, code], {"Retry-After": "7"}
    demo.fetch()
    assert demo.file.read_bytes() == CONTENT and pauses == [7, 7, 20]


def test_a_server_that_stays_in_trouble_is_given_up(demo, publisher):
    publisher.troubles = [503] * 9
    demo.refuses(ConnectionError, "table.tsv", "answers 503", "5 tries")
    assert len(publisher.requests) == 5


def test_nobody_listening_is_told_in_one_sentence(demo, publisher):
    publisher.shutdown(); publisher.server_close()
    demo.refuses(ConnectionError, "table.tsv", "no connection")


def test_a_redirect_is_followed_and_a_circle_is_not(demo, publisher):
    demo.describe(path="/loop/table.tsv")
    demo.refuses(ConnectionError, "TooManyRedirects")
    demo.describe(path="/old/table.tsv")
    publisher.troubles = [None, "cut"]
    demo.fetch()
    assert demo.file.read_bytes() == CONTENT and publisher.asked()[-1] == f"bytes={HALF}-"


def test_a_redirect_to_an_address_without_encryption_is_refused():
    answer = SimpleNamespace(status_code=200, headers={}, url="http://example.org/x")
    with pytest.raises(ConnectionError, match="without encryption"):
        download_module._check_answer(answer, "x", "https://example.org/x")


def test_a_server_without_ranges_sends_all_of_it_again(demo, publisher):
    publisher.ranges, publisher.troubles = False, ["cut"]
    demo.fetch()
    assert demo.file.read_bytes() == CONTENT and publisher.requests[1]["sent"] == len(CONTENT)


def test_a_part_that_begins_elsewhere_is_not_appended(demo, publisher):
    demo.describe(size=None, sha256=None)
    publisher.troubles = ["cut", "elsewhere"]
    demo.fetch()
    assert demo.file.read_bytes() == CONTENT and publisher.asked() == ["", f"bytes={HALF}-", ""]


def test_an_answer_that_ends_in_good_order_but_early_is_continued(demo, publisher):
    demo.describe(sha256=None)
    publisher.troubles = ["short"]
    demo.fetch()
    assert demo.file.read_bytes() == CONTENT and publisher.asked() == ["", f"bytes={HALF}-"]


def test_a_large_file_survives_more_broken_lines_than_tries_as_long_as_each_brings_more(demo, publisher):
    publisher.troubles = ["cut early"]*7
    demo.fetch()
    assert demo.file.read_bytes() == CONTENT and len(publisher.requests) == 8


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("honest", [True, False])
@pytest.mark.parametrize("tags", [True, False])
def test_a_file_that_changed_between_two_tries_is_not_glued_together(demo, publisher, known, honest, tags):
    publisher.content["table.tsv"], publisher.tags, publisher.honest = os.urandom(len(CONTENT)), tags, honest
    demo.describe(sha256=checksum(CONTENT) if known else None)

    def replace(): publisher.content["table.tsv"] = CONTENT

    publisher.troubles = ["cut", replace]
    demo.fetch()
    assert demo.file.read_bytes() == CONTENT
    if not tags and not known: assert publisher.asked() == ["", ""]
    if tags and honest: assert publisher.asked() == ["", f"bytes={HALF}-"]


def test_a_wrong_checksum_is_refused_and_nothing_stays(demo, publisher):
    publisher.content["table.tsv"] = os.urandom(len(CONTENT))
    demo.refuses(ValueError, "table.tsv", publisher.base, checksum(CONTENT)[:12], "--from")
    assert names(demo.cache/"demo") == [".lock"] and len(publisher.requests) == 1


@pytest.mark.parametrize("content", [CONTENT + b"more", CONTENT[:-1], b"<html>not found</html>", b""])
def test_a_wrong_size_is_refused_before_a_byte_is_kept(demo, publisher, content):
    publisher.content["table.tsv"] = content
    demo.refuses(ValueError, "table.tsv", f"{len(content)} bytes", str(len(CONTENT)))
    assert names(demo.cache/"demo") == [".lock"] and len(publisher.requests) == 1


@pytest.mark.parametrize("sha256", [checksum(CONTENT), None], ids=["checksum", "no checksum"])
def test_a_server_that_sends_without_end_is_cut_off(demo, publisher, sha256, monkeypatch):
    written, receive = [], download_module._receive

    def watched(chunks, arriving, *rest):
        try: receive(chunks, arriving, *rest)
        finally: written.append(arriving.stat().st_size)

    monkeypatch.setattr(download_module, "_receive", watched)
    demo.describe(sha256=sha256)
    publisher.troubles = ["endless"]
    demo.refuses(ValueError, "longer than the 40000 bytes", "--from")
    assert written[0] <= len(CONTENT) and names(demo.cache/"demo") == [".lock"]


def test_a_length_is_not_needed_where_the_end_is_marked_or_the_checksum_known(demo, publisher):
    demo.describe(size=None, sha256=None)
    publisher.troubles = ["chunked"]
    demo.fetch()
    assert demo.file.read_bytes() == CONTENT
    shutil.rmtree(demo.cache)
    demo.describe(size=None)
    publisher.troubles = ["silent"]
    demo.fetch()
    assert demo.file.read_bytes() == CONTENT


def test_a_server_that_does_not_say_where_the_end_is_is_refused(demo, publisher):
    demo.describe(size=None, sha256=None)
    publisher.troubles = ["silent"]
    demo.refuses(ConnectionError, "table.tsv", "does not say how long")


def test_bytes_are_kept_as_stored_whatever_the_server_calls_their_encoding(demo, publisher):
    publisher.headers["Content-Encoding"] = "gzip"
    demo.fetch()
    assert demo.file.read_bytes() == CONTENT


def test_a_finished_transfer_without_its_name_costs_no_request(demo, publisher):
    publisher.troubles = ["cut"] + [404]
    demo.refuses(FileNotFoundError)
    demo.arriving.write_bytes(CONTENT)
    demo.fetch()
    assert demo.file.read_bytes() == CONTENT and len(publisher.requests) == 2


def test_the_bar_shows_bytes_rate_and_remaining_time_to_whoever_watches(demo, capsys, monkeypatch):
    monkeypatch.setattr(download_module, "someone_watches", lambda: True)
    fetch("demo", progress=True)
    shown = capsys.readouterr().err
    assert "demo 1/1 table.tsv" in shown and "40.0k" in shown and "B/s" in shown and "<" in shown


def test_an_empty_file_is_a_file(demo, publisher):
    publisher.content["table.tsv"] = b""
    demo.describe(size=0, sha256=checksum(b""))
    demo.fetch()
    assert demo.file.read_bytes() == b""


# Processes and disks

def test_a_killed_fetch_leaves_nothing_readable_and_the_next_one_asks_for_the_rest_only(demo, publisher):
    publisher.troubles = ["stall"]
    child = demo.start()
    wait_until(lambda: demo.arriving.exists() and demo.arriving.stat().st_size == HALF)
    child.send_signal(signal.SIGKILL); child.wait()
    assert not demo.file.exists()
    demo.fetch()
    assert demo.file.read_bytes() == CONTENT
    assert publisher.asked() == ["", f"bytes={HALF}-"] and publisher.requests[1]["sent"] == len(CONTENT) - HALF


def test_two_processes_share_one_transfer(demo, publisher, tmp_path):
    publisher.troubles, said = ["stall"], tmp_path/"said"
    with said.open("w") as stream: children = [demo.start(stream), demo.start(stream)]
    wait_until(lambda: "another process is fetching demo: waiting for it" in said.read_text())
    publisher.release.set()
    assert [child.wait(PATIENCE) for child in children] == [0, 0]
    assert demo.file.read_bytes() == CONTENT and publisher.asked() == ["", f"bytes={HALF}-"]


def test_a_disk_that_is_too_small_is_told_before_the_first_byte(demo, publisher, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=39_999))
    demo.refuses(OSError, "disk is too small", "0.0 MB", str(demo.cache), "SSL_EXPR_CACHE")
    assert publisher.requests == []
    demo.describe(size=None, sha256=None)
    demo.refuses(OSError, "disk is too small")
    assert not demo.arriving.exists()


def test_a_disk_that_fills_up_on_the_way_is_told_and_the_part_is_kept(demo, monkeypatch):
    class FullAtHalf(download_module.tqdm):  # the bar hears of every chunk that was written
        written = 0

        def update(self, n_bytes):
            self.written += n_bytes
            if self.written == HALF: raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download_module, "tqdm", FullAtHalf)
    demo.refuses(OSError, "disk is full", str(demo.cache), "free some space")
    assert demo.arriving.stat().st_size == HALF


def test_a_cache_that_cannot_be_one_is_told(demo, publisher):
    demo.cache.write_text("a file")
    with pytest.raises(OSError, match="a file stands where a folder should be"): demo.fetch()
    assert publisher.requests == []


# Names

TRICKS = ["../evil", "../../.bashrc", "/etc/passwd", "a/b", "a\\b", "..", ".", "", ".hidden", "C:evil", "x\0y", "a b",
          "table.tsv.pin.json", "x.partial", "x.lock", "-rf", "ä", "a\n"]


@pytest.mark.parametrize("name", TRICKS)
def test_a_name_that_could_leave_the_folder_is_refused(demo, publisher, name, tmp_path):
    demo.describe(name=name)
    with pytest.raises(ValueError, match="is refused because it could do harm"): demo.fetch()
    assert publisher.requests == [] and names(tmp_path) == ["manifest.json"]


def test_a_data_set_cannot_leave_the_cache_either(demo):
    demo.write({"../demo": json.loads(demo.manifest.read_text())["demo"]})
    with pytest.raises(ValueError, match="is refused because it could do harm"): demo.fetch(name="../demo")


@pytest.mark.parametrize("wrong", [{"sha256": "abc"}, {"sha256": ""}, {"sha256": "A"*64},
                                   {"address": "ftp://x/y"}, {"address": ""}])
def test_a_manifest_entry_that_cannot_be_right_is_refused(wrong):
    with pytest.raises(ValueError, match="table.tsv"):
        RemoteFile(**{"name": "table.tsv", "address": "https://example.org/x"} | wrong)


# Folders and mirrors

@pytest.fixture
def folder(tmp_path) -> Path:
    "A folder that holds the right file somewhere below."
    place = tmp_path/"disk"/"deep"/"down"
    place.mkdir(parents=True)
    (place/"table.tsv").write_bytes(CONTENT)
    return tmp_path/"disk"


def test_a_folder_serves_in_place_of_the_network(demo, publisher, folder):
    demo.fetch(folder)
    assert demo.file.read_bytes() == CONTENT and publisher.requests == []


@pytest.mark.parametrize("mirror", ["folder", "address"])
def test_the_environment_can_name_a_folder_or_a_mirror(demo, publisher, folder, mirror, monkeypatch):
    demo.describe(path="/elsewhere/gone")
    monkeypatch.setenv("SSL_EXPR_MIRROR", str(folder) if mirror == "folder" else f"{publisher.base}/mirror/")
    demo.fetch()
    assert demo.file.read_bytes() == CONTENT
    assert [request["path"] for request in publisher.requests] == ([] if mirror == "folder" else ["/mirror/table.tsv"])


def test_public_means_the_public_addresses_whatever_the_environment_says(demo, publisher, monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_EXPR_MIRROR", str(tmp_path))
    demo.refuses(FileNotFoundError, "does not hold table.tsv")
    demo.fetch("public")
    assert len(publisher.requests) == 1


@pytest.mark.parametrize("content, word", [
    (CONTENT[::-1], "SHA-256"), (CONTENT[:-1], "39999 bytes"), (CONTENT*2, "80000 bytes"), (b"", "0 bytes")])
def test_a_wrong_file_in_a_folder_is_refused(demo, folder, content, word):
    (folder/"deep"/"down"/"table.tsv").write_bytes(content)
    demo.refuses(ValueError, "table.tsv", str(folder), word, source=folder)


def test_the_right_one_of_two_files_is_found_and_of_two_unknown_ones_none(demo, folder):
    (folder/"deep"/"table.tsv").write_bytes(b"an older version")
    demo.fetch(folder)
    assert demo.file.read_bytes() == CONTENT
    shutil.rmtree(demo.cache)
    demo.describe(size=None, sha256=None)
    demo.refuses(ValueError, "two files called table.tsv", "keep one", source=folder)


def test_a_missing_file_or_folder_is_named(demo, folder):
    (folder/"deep"/"down"/"table.tsv").unlink()
    demo.refuses(FileNotFoundError, "table.tsv", str(folder), demo.base, source=folder)
    demo.refuses(FileNotFoundError, "no folder", "nowhere", source=folder/"nowhere")


def test_a_link_out_of_the_folder_is_copied_as_content_and_a_circle_of_links_ends(demo, folder, tmp_path):
    demo.describe(size=None, sha256=None)
    real = tmp_path/"elsewhere"
    real.mkdir()
    (folder/"deep"/"down"/"table.tsv").rename(real/"table.tsv")
    (folder/"link").symlink_to(real)
    (real/"circle").symlink_to(folder)
    (folder/"broken").symlink_to(tmp_path/"nothing")
    (folder/"deep"/"table.tsv").symlink_to(real/"table.tsv")
    demo.fetch(folder)
    assert demo.file.read_bytes() == CONTENT and not demo.file.is_symlink()
    assert len(list(fetch_module._lying_in(folder))) == 2  # each folder is visited once
    (real/"table.tsv").write_bytes(b"changed later")
    assert demo.file.read_bytes() == CONTENT


def test_a_folder_around_the_cache_does_not_find_the_cache(demo, tmp_path):
    demo.describe(size=None, sha256=None)
    demo.fetch()
    (tmp_path/"table.tsv").write_bytes(CONTENT)
    demo.fetch(tmp_path)


# Trust

def test_a_damaged_file_is_noticed_said_and_replaced(demo, publisher):
    demo.fetch()
    demo.file.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    with pytest.warns(UserWarning, match="table.tsv is damaged and is fetched again"): demo.fetch()
    assert demo.file.read_bytes() == CONTENT and len(publisher.requests) == 2


def test_an_untouched_file_is_not_read_again_and_a_touched_one_is(demo, monkeypatch):
    demo.fetch()
    read, digest = [], fetch_module._digest
    monkeypatch.setattr(fetch_module, "_digest", lambda path: read.append(path.name) or digest(path))
    demo.fetch()
    assert read == []
    os.utime(demo.file, ns=(1, 1))
    demo.fetch(); demo.fetch()
    assert read == ["table.tsv"]


def test_a_manifest_with_a_new_checksum_does_not_take_the_old_file(demo, publisher):
    demo.fetch()
    publisher.content["table.tsv"] = new = os.urandom(len(CONTENT))
    demo.describe(sha256=checksum(new))
    with pytest.warns(UserWarning, match="damaged"): demo.fetch()
    assert demo.file.read_bytes() == new


def test_a_file_without_a_known_checksum_is_held_to_its_first_fetch(demo, publisher):
    demo.describe(size=None, sha256=None)
    demo.fetch()
    pin = json.loads((demo.cache/"demo"/"table.tsv.pin.json").read_text())
    assert pin["sha256"] == checksum(CONTENT) and pin["from"] == f"{publisher.base}/table.tsv"
    demo.file.unlink()
    publisher.content["table.tsv"] = b"another version"
    said = demo.refuses(ValueError, "table.tsv", checksum(CONTENT)[:12], "table.tsv.pin.json to accept")
    (demo.cache/"demo"/"table.tsv.pin.json").unlink()
    demo.fetch()
    assert demo.file.read_bytes() == b"another version", said


def test_a_damaged_pin_is_told_where_it_is_needed_and_renewed_where_it_is_not(demo):
    demo.fetch()
    pin = demo.cache/"demo"/"table.tsv.pin.json"
    pin.write_text("{")
    demo.fetch()
    assert json.loads(pin.read_text())["sha256"] == checksum(CONTENT)
    pin.write_text("{")
    demo.describe(size=None, sha256=None)
    with pytest.raises(ValueError, match="pin.json is damaged.*delete both"): demo.fetch()


# Data sets of many files

@pytest.fixture
def many(demo, tmp_path) -> Path:
    "A data set of two listed files, one with a checksum, and a folder that holds one of them and one more."
    listed = [{"name": f"{name}-counts.tsv", "address": f"{demo.base}/{name}-counts.tsv", "size": None,
               "sha256": checksum(b"liver") if name == "liver" else None} for name in ("liver", "lung")]
    demo.describe(files=listed, pattern="*-counts.tsv")
    (tmp_path/"some").mkdir()
    (tmp_path/"some"/"liver-counts.tsv").write_bytes(b"liver")
    (tmp_path/"some"/"brain-counts.tsv").write_bytes(b"brain")
    (tmp_path/"some"/"brain-fpkm.tsv").write_bytes(b"not of it")
    return tmp_path/"some"


def data(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*-counts.tsv")}


def test_what_a_folder_holds_is_the_data_set_and_is_remembered(demo, publisher, many):
    place = demo.fetch(many)
    assert data(place) == {"liver-counts.tsv": b"liver", "brain-counts.tsv": b"brain"}
    assert (place/"brain-counts.tsv.pin.json").is_file() and demo.fetch() == place and publisher.requests == []
    (place/"brain-counts.tsv").unlink()
    assert data(demo.fetch())["brain-counts.tsv"] == b"brain"
    (place/"brain-counts.tsv").unlink()
    shutil.rmtree(many)
    with pytest.raises(FileNotFoundError, match="some does not hold brain-counts.tsv: put it there$"): demo.fetch()


def test_the_same_call_means_the_same_files_whatever_was_fetched_before(demo, publisher, many, tmp_path):
    publisher.content |= {"liver-counts.tsv": b"liver", "lung-counts.tsv": b"lung"}
    everything = demo.fetch("public")
    assert data(demo.fetch(many)) == {"liver-counts.tsv": b"liver", "brain-counts.tsv": b"brain"}
    (tmp_path/"one").mkdir()
    (tmp_path/"one"/"lung-counts.tsv").write_bytes(b"lung")
    assert data(demo.fetch(tmp_path/"one")) == {"lung-counts.tsv": b"lung"}
    assert demo.fetch("public") == everything == demo.fetch()
    assert data(everything) == {"liver-counts.tsv": b"liver", "lung-counts.tsv": b"lung"}


def test_a_folder_that_has_not_changed_is_not_read_again(demo, many, monkeypatch):
    demo.fetch(many)
    monkeypatch.setattr(fetch_module, "_digest", lambda path: pytest.fail(f"{path} was read"))
    demo.fetch(many)


def test_a_listed_file_is_checked_and_another_one_held_to_its_pin(demo, many):
    place = demo.fetch(many)
    (many/"brain-counts.tsv").write_bytes(b"brian")
    with pytest.raises(ValueError, match="brain-counts.tsv is not the file that was pinned on"): demo.fetch(many)
    (many/"brain-counts.tsv").write_bytes(b"brain")
    assert demo.fetch(many) == place
    (many/"liver-counts.tsv").write_bytes(b"river")
    shutil.rmtree(demo.cache)
    with pytest.raises(ValueError, match="liver-counts.tsv .*SHA-256"): demo.fetch(many)


def test_a_folder_without_any_file_of_the_data_set_is_refused(demo, many):
    for path in many.glob("*-counts.tsv"): path.unlink()
    demo.refuses(FileNotFoundError, "holds no file of demo", "*-counts.tsv", source=many)


def test_needed_data_sets_come_along(demo, publisher):
    entry = json.loads(demo.manifest.read_text())["demo"]
    demo.write({"demo": entry, "main": entry | {"needs": ["demo"]}})
    assert demo.fetch(name="main") == demo.cache/"main"
    assert demo.file.read_bytes() == CONTENT == (demo.cache/"main"/"table.tsv").read_bytes()


def test_an_unknown_data_set_is_answered_with_the_known_ones(demo):
    with pytest.raises(ValueError, match="unknown data set 'dmeo': known are demo"): demo.fetch(name="dmeo")


def test_usage_counts_data_and_unfinished_bytes(demo, publisher):
    assert usage().empty
    publisher.troubles = ["cut", 404]
    demo.refuses(FileNotFoundError)
    demo.arriving.write_bytes(bytes(3_000_000))
    assert usage().values.tolist() == [["demo", 0, 3.0]]
    demo.arriving.unlink()
    demo.fetch()
    assert usage()[["data set", "files"]].values.tolist() == [["demo", 1]]


def test_usage_names_every_store_with_what_a_killed_builder_left_of_it(demo):
    demo.fetch()
    for name, size in [("demo-0123456789ab.h5ad", 2), ("demo-extra-0123456789ab.h5ad", 1), (".demo-old.h5ad.lock", 0),
                       (".demo-0123456789ab.h5ad.lock", 0), (".partial-0a1b2c3d-demo-0123456789ab.h5ad", 3)]:
        (demo.cache/"stores").mkdir(exist_ok=True)
        (demo.cache/"stores"/name).write_bytes(bytes(size*1_000_000))
    assert usage().values.tolist() == [["demo", 1, 0.0], ["stores/demo-0123456789ab", 1, 5.0],
                                       ["stores/demo-extra-0123456789ab", 1, 1.0]]


@pytest.mark.parametrize("pin", [None, "damaged", {"sha256": "0"*64, "size": LENGTH, "mtime_ns": 1}, {}],
                         ids=["none", "damaged", "of another time", "empty"])
def test_checksums_of_a_cache_without_fitting_pins_are_computed(demo, pin):
    pinned = checksums(demo.fetch())
    path = demo.file.with_name("table.tsv.pin.json")
    path.unlink()
    if pin is not None: path.write_text(pin if isinstance(pin, str) else json.dumps(pin))
    assert checksums(demo.cache/"demo") == pinned == {"table.tsv": CHECKSUM}


def test_checksums_come_from_the_pins_without_reading_the_files_again(demo, monkeypatch):
    demo.fetch()
    monkeypatch.setattr(fetch_module, "_digest", None)
    assert checksums(demo.cache/"demo") == {"table.tsv": CHECKSUM}


def test_the_cache_is_where_the_platform_keeps_caches_or_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_EXPR_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("SSL_EXPR_CACHE")
    assert cache_folder().is_absolute() and "ssl-expr" in cache_folder().parts


# The manifest we ship, and the real files

def test_the_shipped_manifest_names_every_data_set_with_licence_and_fixed_addresses():
    known = sources()
    assert set(known) >= {"tcga-mirna", "tcga-labels", "rnaseqdb", "tcga", "archs4", "gtex"}
    for source in known.values():
        assert source.title and source.licence and source.citation and set(source.needs) <= set(known)
        assert ("tcga-labels" in source.needs) == (source.name in ("tcga-mirna", "rnaseqdb", "tcga"))
        assert len({file.name for file in source.files}) == len(source.files) > 0
        for file in source.files:
            assert file.address.startswith("https://") and (file.size is None) == (file.sha256 is None)
            if "githubusercontent" in file.address: assert len(file.address.split("/")[5]) == 40, file.address


@pytest.mark.real_data
def test_checksums_of_the_manifest_are_those_of_the_original_files(real_data):
    lines = (real_data/"SHA256SUMS").read_text().splitlines()
    stated = {Path(path).name: (digest, (real_data/path).stat().st_size) for digest, path in map(str.split, lines)}
    files = [file for source in sources().values() for file in source.files if file.sha256]
    listed = {file.name: (file.sha256, file.size) for file in files}
    assert len(listed) == 34 + 2 + 26 and listed.items() <= stated.items()


@pytest.mark.real_data
@pytest.mark.parametrize("name, n_files", [("tcga-mirna", 34), ("rnaseqdb", 26)])
def test_real_data_sets_are_fetched_from_a_folder(real_data, tmp_path, monkeypatch, name, n_files):
    monkeypatch.setenv("SSL_EXPR_CACHE", str(tmp_path/"cache"))
    place = fetch(name, real_data, progress=False)
    assert place == tmp_path/"cache"/name
    used = usage().set_index("data set")["files"]
    assert used[name] == n_files and used["tcga-labels"] == 2
