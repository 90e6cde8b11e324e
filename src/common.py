"""What every step shares: errors a user can act on, strict JSON lines, files written whole or not at all."""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import interruption

ROOT = Path(__file__).resolve().parent.parent
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_WRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM}
NEXT_ON_FULL_DISK = "free some space or choose another --out, then run again"


class UserError(Exception):
    """The call or its input was wrong: exit code 2, the message alone."""


class WorkFailed(Exception):
    """The work itself failed: exit code 1, the message alone."""


def run(main):
    """Call a step's main and turn whatever a user can cause into one message and an exit code."""
    # The libraries report usage to their hub unless told otherwise; a user who wants that sets the variable to 0.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    interruption.listen()
    try:
        sys.exit(main() or 0)
    except UserError as error:
        say_and_exit(f"error: {as_typed(error)}", 2)
    except WorkFailed as error:
        say_and_exit(with_kept(f"failed: {as_typed(error)}"), 1)
    except KeyboardInterrupt as error:
        say_and_exit(interruption.report(error), getattr(error, "exit_code", 130))
    except BrokenPipeError:
        # Whoever read our output has gone, and the work is not finished: say so as the shell would.
        sys.stdout = None
        sys.exit(141)
    except Exception as error:
        if message := explain_no_space(error) or explain_not_writable(error):
            say_and_exit(with_kept(f"failed: {as_typed(message)}"), 1)
        if message := explain_os_error(error):
            say_and_exit(f"error: {as_typed(message)}", 2)
        raise


def with_kept(message):
    kept = interruption.kept()
    return f"{message}; {kept}, and the same command goes on from there" if kept else message


def say_and_exit(message, code):
    print(message, file=sys.stderr, flush=True)
    sys.exit(code)


def explain_os_error(error):
    """One sentence for the file-system errors that a wrong path causes; None for the rest."""
    if not isinstance(error, OSError):
        return None
    where = error.filename or "the output"
    if isinstance(error, FileNotFoundError):
        return f"{where}: no such file or folder; check the path"
    if isinstance(error, IsADirectoryError | NotADirectoryError | PermissionError | FileExistsError):
        return f"{where}: {error.strerror}; check the path and its permissions"
    return None


def explain_not_writable(error):
    """One sentence where a place cannot be written; a file that may not be read is the call's fault instead."""
    if not isinstance(error, OSError) or error.errno not in NOT_WRITABLE or not error.filename:
        return None
    if error.errno != errno.EROFS and os.path.exists(error.filename) and not os.access(error.filename, os.R_OK):
        return None
    return f"{error.filename}: {error.strerror}; choose a folder that can be written, then run again"


def explain_no_space(error):
    """One sentence for a full disk, which libraries that write through native code report as text only."""
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return f"{error.filename or 'the output'}: no space left to write ({error.strerror}); {NEXT_ON_FULL_DISK}"
    text = str(error)
    # torch's file writer hides the cause and names its own place instead.
    if any(os.strerror(code).lower() in text.lower() for code in NO_SPACE) or "inline_container" in text:
        return f"no space left to write ({text.strip().splitlines()[-1]}); {NEXT_ON_FULL_DISK}"
    return None


def as_typed(message):
    """A message in the words of the user's command: make's variables stand for a step's options where make runs it."""
    text = str(message)
    if interruption.TYPED not in os.environ:
        return text
    variables, switches = options_of_make()
    for option, variable in switches.items():
        text = re.sub(rf"--{option}\b", f"{variable}=1", text)
    for option, variable in variables.items():
        text = re.sub(rf"--{option} ([^\s,;:]+)(?=: )", rf"{variable}=\1", text)
        text = re.sub(rf"--{option}\b", f"{variable}=", text)
    return text


def options_of_make():
    """({option: variable}, {switch: variable}) as the Makefile gives them to the steps."""
    try:
        text = (ROOT / "Makefile").read_text(encoding="utf-8")
    except OSError:
        return {}, {}
    documented = set(re.findall(r"^## ([A-Z_]+) ", text, re.M))
    definitions = dict(re.findall(r"^([A-Z_]+) :?= (.*)$", text, re.M))

    def typed(name):
        """The variable that a user sets; a name of the Makefile's own may stand for it."""
        names = [name, *re.findall(r"\$\(([A-Z_]+)\)", definitions.get(name, ""))]
        return next((one for one in names if one in documented), None)

    switches = {option: typed(name) for name, option in re.findall(r"\$\(if \$\((\w+)\),--(\w+)\)", text)}
    variables = {}
    for option, name in re.findall(r"--(\w+)[ =]\"?\$\(([A-Z_]+)\)(?![\w/])", text):
        variables.setdefault(option, set()).add(typed(name))
    # An option that stands for one thing here and for another there keeps its own name.
    return {option: name for option, [name, *more] in variables.items() if name and not more}, switches


def to_json(value):
    """The one serialisation of a value inside a prompt or an answer: compact, and free of control-token spellings.

    Every chat template opens its control tokens with `<` or `[`; inside a string both are written as escapes, so
    `<|im_end|>` or `[/INST]` in a record stays data and the JSON value is unchanged. Lone surrogates have no UTF-8.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _STRING.sub(lambda match: _UNSAFE.sub(_escape, match.group()), text)


_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_UNSAFE = re.compile("[<\\[\ud800-\udfff]")


def _escape(match):
    return f"\\u{ord(match.group()):04x}"


def parse_json(text):
    """json.loads without its leniencies: NaN, infinities and repeated keys are errors."""
    return json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_no_repeats)


def first_json(text):
    """(the strict JSON value that a text begins with, where it ends)"""
    strict = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_no_repeats)
    return strict.raw_decode(text)


def _no_constant(name):
    raise ValueError(f"{name} is not JSON")


def _finite(text):
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large a number")
    return value


def _no_repeats(pairs):
    value = dict(pairs)
    if len(value) != len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {repeated!r} appears twice in one object")
    return value


def is_folder(model_path):
    """Whether a model's path leads to a folder; a name that a server knows may be empty, which would name this one."""
    return bool(model_path) and Path(model_path).is_dir()


def parsed_answer(text, schema):
    """The answer when it is JSON that a schema's validator accepts, else None. Nothing is guessed from text that is
    not.
    """
    try:
        answer = parse_json(text)
    except (ValueError, RecursionError):
        return None
    return answer if schema.is_valid(answer) else None


def read_lines(path):
    """(line number, line) of a UTF-8 text file; a line that is not UTF-8 comes as the error that it raised."""
    path = existing_file(path)
    with open(path, "rb") as lines:
        for number, raw in enumerate(lines, 1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield number, error


def read_jsonl(path):
    """Every row of a JSON Lines file that one of our own steps wrote."""
    return json_rows(path, read_lines(path))


def json_rows(path, lines):
    """The rows in (line number, line) of such a file."""
    rows = []
    for number, line in lines:
        try:
            rows.append(json.loads(line))
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path}:{number}: not a JSON line ({error}); make the file again with the step that wrote it"
            ) from error
    return rows


def read_json(path):
    try:
        return json.loads(existing_file(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); fix it or make it again") from error


def existing_file(path, hint="check the path"):
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}; {hint}")
    return path


@contextlib.contextmanager
def written_whole(*paths):
    """Open files for writing that appear under their names only when the block ends well."""
    paths = [Path(path) for path in paths]
    parts = [path.with_name(path.name + ".part") for path in paths]
    try:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as opened:
            # A lone surrogate has no UTF-8; its backslash escape is the JSON one.
            files = [
                opened.enter_context(open(part, "w", encoding="utf-8", errors="backslashreplace")) for part in parts
            ]
            yield files if len(files) > 1 else files[0]
        for part, path in zip(parts, paths, strict=True):
            os.replace(part, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in NO_SPACE | NOT_WRITABLE:
            # The user knows the file by its own name, not by that of its part.
            error.filename = str(paths[0])
        for part in parts:
            # On a disk that can only be read there is no part either.
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def folder_written_whole(folder):
    """A folder to fill that takes the place of another, or of none, only when the block ends well."""
    folder = Path(folder)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        # First the mark of a whole result: a run that is killed while the old one goes must not leave it on the rest.
        (folder / "manifest.json").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in NO_SPACE | NOT_WRITABLE:
            error.filename = str(folder)
        shutil.rmtree(part, ignore_errors=True)
        raise


def write_text(path, text):
    with written_whole(path) as out:
        out.write(text)


def write_json(path, value):
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def sha256_file(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_text(text):
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def counted(n, noun):
    """A number with its noun: 1 row, 2,000 rows."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def row_id(row):
    """The row's own id, or a name made from its input that every step derives alike."""
    return str(row["id"]) if "id" in row else "row-" + sha256_text(to_json(row["input"]))[:12]


def shown_path(path):
    """A path as a manifest may hold it: inside the project relative to it, outside by its last name only."""
    text = str(path)
    if not os.path.isabs(text):
        return text
    return os.path.relpath(text, ROOT) if text.startswith(f"{ROOT}/") else Path(text).name


def usable_cores():
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quiet_libraries():
    """Keep the model libraries' own bars and advice out of our output; their errors still show."""
    import logging

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def progress(total, unit, title):
    """A progress bar on a terminal, a plain line every ten seconds in a log; `update(n)` moves it."""
    if sys.stderr.isatty():
        return bar_on_terminal(total, unit, title)
    return PlainProgress(total, unit, title)


def bar_on_terminal(total, unit, title):
    from tqdm import tqdm

    bar = tqdm(total=total, unit=unit, desc=title, unit_scale=True, dynamic_ncols=True)

    def skip(n):
        bar.initial = n
        bar.n += n
        bar.refresh()

    bar.skip = skip
    return bar


class PlainProgress:
    EVERY_S = 10

    def __init__(self, total, unit, title):
        self.total = total
        self.unit = unit
        self.title = title
        self.n = 0
        self.n_before = 0
        self.start = self.said = self.last = time.monotonic()
        self.note = ""

    def skip(self, n):
        """So many were done by an earlier run: they count, and not in the rate."""
        self.n += n
        self.n_before += n

    def update(self, n=1):
        if time.monotonic() - self.said >= self.EVERY_S:
            self.said = time.monotonic()
            # Up to the update before: of a batch that comes at once, the first row would count for the whole wait.
            seconds = self.last - self.start
            rate = (self.n - self.n_before) / seconds if seconds > 0 else 0
            pace = f", {speed(rate, self.unit)}, {time_left((self.total - self.n) / rate)}" if rate else ""
            print(
                f"{self.title}: {self.n + n:,} of {self.total:,} {self.unit} "
                f"({100 * (self.n + n) / max(self.total, 1):.0f} %){pace}{self.note}",
                file=sys.stderr,
                flush=True,
            )
        self.n += n
        self.last = time.monotonic()

    def set_postfix_str(self, note, refresh=True):
        self.note = f", {note}"

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        pass


def speed(rate, unit):
    """In the way that shows more than a zero: units a second, or seconds a unit."""
    return f"{rate:,.1f} {unit}/s" if rate >= 1 else f"{1 / rate:,.1f} s/{unit.removesuffix('s')}"


def time_left(seconds):
    return f"{in_words(seconds)} left"


def in_words(seconds):
    """A duration in the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3_600:.1f} h"
