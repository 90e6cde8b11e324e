"""The model's answers to the cases that wait, kept in a file: neither another process nor the next start asks again."""

import contextlib
import json

from common import parse_json


class KeptAnswers:
    def __init__(self, path, task, model):
        self.path = path
        self.task = task
        self.model = model
        self.n_bytes = 0
        self.n_skipped = 0  # lines that hold no answer

    def new(self):
        """What this very model answered, of the lines that were not read yet."""
        # Only time is lost where it cannot be read.
        with contextlib.suppress(OSError), open(self.path, "rb") as lines:
            lines.seek(self.n_bytes)
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                self.n_bytes += len(line)
                kept = self._of(line)
                if kept is None:
                    self.n_skipped += 1
                elif kept["model"] == self.model:
                    yield kept

    def _of(self, line):
        """What a line holds, or None where that is no answer of this or another model."""
        try:
            kept = parse_json(line.decode("utf-8"))
        except (ValueError, RecursionError):
            return None
        if not isinstance(kept, dict) or not all(isinstance(kept.get(key), str) for key in ("pair", "model")):
            return None
        # Another model's answers are not used, and may have been made for another schema.
        return kept if kept["model"] != self.model or self._fits(kept) else None

    def _fits(self, kept):
        answer = kept.get("answer")
        shares = kept.get("probabilities")
        is_answer = isinstance(answer, dict) and not self.task.answer_problems(answer)
        return is_answer and (shares is None or (isinstance(shares, dict) and self._are_shares(shares)))

    def _are_shares(self, shares):
        are_numbers = all(type(share) in (int, float) and share >= 0 for share in shares.values())
        return are_numbers and shares.keys() <= set(self.task.verdict.labels)

    def keep(self, pair, answer, probabilities):
        kept = {"pair": pair, "model": self.model, "answer": answer, "probabilities": probabilities}
        with contextlib.suppress(OSError), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(kept) + "\n")
