"""An OpenAI-compatible endpoint that behaves as a test wants it to."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GOOD = '{"result":"POSSIBLE","reasoning":"Needs review: name matches."}'


class Http(ThreadingHTTPServer):
    # of connections that wait to be taken; the library's 5 refuses some of a benchmark's clients on a busy machine
    request_queue_size = 128


class Server:
    """An endpoint whose every answer to a question is what the test says; the canary is obeyed unless it says no."""

    def __init__(self, behave, obeys=True):
        self.behave = behave
        self.obeys = obeys
        self.n_asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):  # noqa: N802 - the library's name
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                schema = body.get("response_format", {}).get("json_schema", {}).get("schema", {})
                sign = schema.get("properties", {}).get("sign")
                if sign and outer.obeys is True:
                    return outer.say(self, json.dumps({"sign": sign["const"]}))
                if sign and outer.obeys is False:
                    return outer.say(self, "Hello! How can I help you?")
                outer.n_asked += 1
                return outer.behave(outer, self, body)

            def do_GET(self):  # noqa: N802 - the library's name
                outer.send(self, json.dumps({"data": [{"id": "steward"}]}))

            def log_message(self, *_):
                pass

        self.http = Http(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.http.server_port}/v1"

    def say(self, handler, text, finish="stop", logprobs=None, status=200, **headers):
        choice = {"message": {"content": text}, "finish_reason": finish} | (
            {"logprobs": {"content": logprobs}} if logprobs else {}
        )
        self.send(
            handler,
            json.dumps({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 5}}),
            status,
            **headers,
        )

    def stream(self, handler, pieces, ends=True):
        """Server-sent events; without its end a stream breaks off."""
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream; charset=utf-8")
        handler.end_headers()
        for piece in pieces:
            data = piece if isinstance(piece, str) else json.dumps(piece)
            handler.wfile.write(f"data: {data}\n\n".encode())
            handler.wfile.flush()
        if ends:
            handler.wfile.write(b"data: [DONE]\n\n")
        handler.connection.close()

    def send(self, handler, body, status=200, **headers):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body.encode())))
        handler.end_headers()
        handler.wfile.write(body.encode())


def saying(text, **options):
    return lambda server, handler, body: server.say(handler, text, **options)


def hang(server, handler, body):
    threading.Event().wait(2.5)


def cut(server, handler, body):
    handler.send_response(200)
    handler.send_header("Content-Length", "500")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"message": {"content": "{\\"result\\":\\"DUPL')
    handler.wfile.flush()
    handler.connection.close()
