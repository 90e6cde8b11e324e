"""A service of several worker processes before a made-up model: python tests/support/stub_service.py <port> <folder of
the decisions> <file of cases> <workers>
"""

import sys
from types import SimpleNamespace

import uvicorn

import service.answering
import service.app
from service.settings import Settings
from support.serving import Model


def application():
    engine = Model()
    service.answering.load_engine = lambda _: SimpleNamespace(
        load=lambda *_, **__: engine, STARTS_SERVER=False, NEEDS_ENDPOINT=False
    )
    return service.app.build(Settings.stored())


if __name__ == "__main__":
    port, folder, cases, n_workers = sys.argv[1:]
    Settings("models/steward-mini", "crm", port=int(port), review_folder=folder, review_cases=cases).store()
    uvicorn.run(
        "support.stub_service:application", factory=True, port=int(port), workers=int(n_workers), log_level="error"
    )
