"""Reports of earlier measurements: read again for a table, with the words that say where they come from."""

from common import UserError, read_json


def read_report(path, name, table_of):
    """A report of `measure.py <name>`. Its table is drawn alone first, so that a damaged report is named."""
    report = read_json(path)
    try:
        table_of([report])
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a report of src/measure.py {name} ({type(error).__name__}: {error}); make it again"
        ) from error
    return report


def table(folder, pattern, name, table_of):
    """The table of all reports of `measure.py <name>` in a folder; None where nothing was measured."""
    paths = sorted(folder.glob(pattern))
    return table_of([read_report(path, name, table_of) for path in paths]) if paths else None


def weights(model):
    return f"weights {model['sha256'][:12]}"


def commit_and_time(report):
    return f"commit {(report.get('git_commit') or 'unknown')[:12]}; {report.get('finished', '')}"


def machine(hardware):
    return hardware["gpu"] if "gpu" in hardware else f"{hardware['cpu_cores']} CPU cores"
