"""What one level of load measured: times, rates, shares of valid answers, and their distance to the roofline."""

from statistics import fmean, median
from time import perf_counter

from common import WorkFailed
from scoring import kpis_of_every_task

# Columns of the CSV; `floor` in their names is the least time, or the highest rate, that the roofline allows.
MEASURES = (
    "form",
    "concurrency",
    "rate_per_s",
    "n",
    "n_failed",
    "p50_ms",
    "p95_ms",
    "p99_ms",
    "first_token_p50_ms",
    "first_token_p95_ms",
    "req_per_s",
    "output_tok_per_s",
    "prompt_tok_per_s",
    "prompt_tokens_mean",
    "output_tokens_mean",
    "json_valid_raw_pct",
    "json_valid_pct",
    "closed_at_budget_pct",
    "mask_overruled_pct",
    "floor_p50_ms",
    "p50_of_floor",
    "floor_req_per_s",
    "req_per_s_of_floor_pct",
)


def logged(task, level, id, record):
    """A request as the log keeps it: times and counts, no record text."""
    answer = record.pop("answer")
    return {
        "form": level.form,
        "concurrency": level.concurrency,
        "rate_per_s": level.rate,
        "id": id,
        **record,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "settled_tokens": answer.n_settled,
        "finish_reason": answer.finish_reason,
        "failed": answer.failure is not None,
        "valid": task.parsed(answer.text) is not None,
        "overruled": answer.overruled,
        "late": answer.late,
    }


def summary(task, level, requests, roofline):
    """One line of the CSV."""
    answered = [request for request in requests if not request["failed"]]
    if not answered:
        raise WorkFailed(
            f"{level.title}: all {len(requests):,} requests failed; the first: {requests[0]['finish_reason']}"
        )
    seconds = max(one["done_s"] for one in requests) - min(one["intended_s"] for one in requests)
    return rounded(
        {
            "form": level.form,
            "concurrency": level.concurrency,
            "rate_per_s": level.rate,
            "n": len(requests),
            "n_failed": len(requests) - len(answered),
            **times(answered),
            **rates(answered, len(answered) / seconds),
            **valid_shares(task, answered),
            **beside_roofline(level, answered, len(answered) / seconds, roofline),
        }
    )


def times(answered):
    return {
        "p50_ms": percentile(answered, "latency_s", 50),
        "p95_ms": percentile(answered, "latency_s", 95),
        "p99_ms": percentile(answered, "latency_s", 99),
        "first_token_p50_ms": percentile(answered, "first_token_s", 50),
        "first_token_p95_ms": percentile(answered, "first_token_s", 95),
    }


def rates(answered, rate):
    output_tokens = fmean([one["completion_tokens"] for one in answered])
    prompt_tokens = fmean([one["prompt_tokens"] for one in answered])
    return {
        "req_per_s": rate,
        "output_tok_per_s": rate * output_tokens,
        "prompt_tok_per_s": rate * prompt_tokens,
        "prompt_tokens_mean": prompt_tokens,
        "output_tokens_mean": output_tokens,
    }


def valid_shares(task, answered):
    """The KPIs of the scoring, in the CSV's columns: for a task whose answer is no JSON too."""
    counted = ("valid", "overruled", "late", "completion_tokens", "finish_reason")
    shares = kpis_of_every_task.shares(
        task, [kpis_of_every_task.counts(*(one[key] for key in counted)) for one in answered]
    )
    name = kpis_of_every_task.VALID[task.answer]
    return {
        "json_valid_raw_pct": shares[f"{name}_raw_pct"],
        "json_valid_pct": shares[f"{name}_pct"],
        "closed_at_budget_pct": shares["closed_at_budget_pct"],
        "mask_overruled_pct": shares["mask_overruled_pct"],
    }


def beside_roofline(level, answered, rate, roofline):
    best_p50 = best_rate = None
    if roofline and level.concurrency:
        # The median answer is compared with the limit of a median one, the rate with that of a mean one.
        prompts = [one["prompt_tokens"] for one in answered]
        written = [one["completion_tokens"] - one["settled_tokens"] for one in answered]
        best_p50, _ = roofline.answers(level.concurrency, median(prompts), median(written))
        _, best_rate = roofline.answers(level.concurrency, fmean(prompts), fmean(written))
    return {
        "floor_p50_ms": best_p50,
        "p50_of_floor": percentile(answered, "latency_s", 50) / best_p50 if best_p50 else None,
        "floor_req_per_s": best_rate,
        "req_per_s_of_floor_pct": 100 * rate / best_rate if best_rate else None,
    }


def verdicts_in_bulk(engine, warm_up, conversations, roofline):
    """Verdicts alone, rows in the engine's own batches."""
    list(engine.verdicts(warm_up))
    start = perf_counter()
    found = list(engine.verdicts(conversations))
    rate = len(found) / (perf_counter() - start)
    tokens = fmean([len(ids) for ids in engine.chat.prompts_ids(conversations)]) if engine.chat else None
    best = roofline.verdicts_a_s(tokens) if roofline and tokens else None
    return rounded(
        dict.fromkeys(MEASURES)
        | {
            "form": "verdicts",
            "n": len(found),
            "n_failed": 0,
            "req_per_s": rate,
            "prompt_tok_per_s": tokens and tokens * rate,
            "prompt_tokens_mean": tokens,
            "floor_req_per_s": best,
            "req_per_s_of_floor_pct": best and 100 * rate / best,
        }
    )


def percentile(requests, key, share):
    """In milliseconds; None where the engine does not report it."""
    import numpy as np

    values = [one[key] for one in requests if one[key] is not None]
    return 1000 * float(np.percentile(values, share)) if values else None


def rounded(values):
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in values.items()}
