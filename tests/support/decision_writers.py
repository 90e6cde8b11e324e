"""A process whose threads add decisions to one file and print the hash of each that was acknowledged:
python tests/support/decision_writers.py <file> <threads> <decisions a thread>
"""

import sys
import threading

from service.review import decisions
from support.reviewing import decision


def add(book, n):
    for at in range(n):
        # One write a line, so that threads do not tear one another's.
        sys.stdout.write(f"{book.add(decision(at))['hash']}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    path, n_threads, n = sys.argv[1:]
    book = decisions.Decisions(path, lock_s=60)
    threads = [threading.Thread(target=add, args=(book, int(n))) for _ in range(int(n_threads))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
