"""What npx starts in tests in the place of Prism: a server on the named port that wants a token and a duration."""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(404, {})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] is None:
            self.answer(401, {})
        elif self.path not in self.server.api["paths"] or "callbacks" in json.dumps(self.server.api):
            self.answer(404, {})
        elif body == b"die":
            os._exit(7)
        elif b"duration" not in body:
            self.answer(422, {"sl-violations": json.dumps([{"message": "Request body must have a duration"}])})
        else:
            self.answer(201, {})

    def answer(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    def __init__(self, port, api):
        super().__init__(("127.0.0.1", port), Handler)
        self.api = api


def main():
    kind = os.environ.get("FAKE_NPX")
    if kind == "refuses":
        sys.exit("npm error 404 Not Found")
    if kind == "deaf":
        time.sleep(60)
    port = int(sys.argv[sys.argv.index("-p") + 1])
    Server(port, json.loads(Path(sys.argv[-1]).read_text())).serve_forever()


if __name__ == "__main__":
    main()
