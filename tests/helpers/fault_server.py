"""A local web server that produces faults on request."""

import hashlib
import http.server
import random
import re
import socket
import struct
import threading
import time

FAULTS = (
    "cut", "reset", "500", "503", "stall", "short length", "long length", "wrong bytes",
    "no range", "wrong range", "redirect", "changed etag", "html",
)  # fmt: skip


class FaultServer(http.server.ThreadingHTTPServer):
    """Serves `files` (path -> bytes) with Range, If-Range and ETag.

    Set `faults` to a sequence of names: each request uses the next one; "" is no fault. `ranges`
    and `etags` switch Range and ETag, `delay` sleeps that many seconds before each 16 kB, `chunked`
    hides the length, `extra` adds headers. `requests` lists (path, Range header), `sent` counts
    bytes.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, files: dict[str, bytes], seed: int = 0):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.random = dict(files), random.Random(seed)
        self.faults, self.ranges, self.etags, self.chunked, self.delay = [], True, True, False, 0.0
        self.extra, self.requests, self.sent = {}, [], 0
        self.guard = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, *_args):  # a client that is killed is no news
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_args):
        pass

    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        with server.guard:
            server.requests.append((self.path, wanted))
            fault = server.faults.pop(0) if server.faults else ""
            share = server.random.random()
        data = server.files.get(self.path.removeprefix("/elsewhere"))
        if data is None:
            return self.send_error(404)
        if fault in ("500", "503"):
            self.send_response(int(fault))
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if fault == "redirect":
            self.send_response(302)
            self.send_header("Location", "/elsewhere" + self.path)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if fault == "html":  # a hotel's login page
            data, wanted = b"<html>log in</html>" * 40, None
        etag = '"' + hashlib.md5(data).hexdigest() + '"'
        if fault == "changed etag":
            etag = '"other"'
        if fault == "wrong bytes":
            data = data[:-1] + bytes([data[-1] ^ 1])
        begin, end, whole = 0, len(data), True
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
        validator = self.headers.get("If-Range")
        if asked and server.ranges and fault != "no range" and validator in (None, etag):
            begin = int(asked[1]) + (7 if fault == "wrong range" else 0)
            end = min(int(asked[2]) + 1 if asked[2] else len(data), len(data))
            if begin >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            whole = False
        body = data[begin:end]
        error = {"short length": -3, "long length": 3}.get(fault, 0)
        self.protocol_version = "HTTP/1.1"
        self.send_response(200 if whole else 206)
        if not whole:
            total = len(data) + error
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{total}")
        if server.etags:
            self.send_header("ETag", etag)
        for name, value in server.extra.items():
            self.send_header(name, value)
        if server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(max(len(body) + error, 0)))
        self.send_header("Connection", "close")
        self.end_headers()
        stop = int(len(body) * share) if fault in ("cut", "reset", "stall") else len(body)
        for start in range(0, stop, 16384):
            block = body[start : min(start + 16384, stop)]
            time.sleep(server.delay)
            with server.guard:
                server.sent += len(block)
            head = f"{len(block):x}\r\n".encode() if server.chunked else b""
            self.wfile.write(head + block + (b"\r\n" if server.chunked else b""))
        self.wfile.flush()
        if fault == "stall":
            time.sleep(0.6)
        elif fault == "reset":
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
        elif server.chunked and fault != "cut":
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True
