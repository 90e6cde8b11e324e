"""What holds for every test, before anything heavy is imported."""

import os
import signal

# Two workers share two cores: threads of PyTorch's that wait for one another cost more than they bring.
os.environ["OMP_NUM_THREADS"] = "1"
# Run by make, steps would speak of make's variables.
os.environ.pop("STEWARD_TYPED", None)
# Started in the background, the tests would hand an ignored Ctrl-C on to the steps that they stop.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Files that take minutes, longest first: begun last, one would run on while the other worker has nothing to do.
LONGEST = (
    "test_training",
    "test_robustness",
    "test_makefile",
    "test_guarantee",
    "test_demo",
    "test_serve",
    "test_any_task",
    "test_readme",
    "test_contract",
    "test_pretrain",
    "test_own_table",
    "test_review",
    "test_baseline",
    "test_adaptation",
    "test_bad_input",
    "test_latency",
)


def pytest_collection_modifyitems(items):
    place = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))
