"""What `lrsa bench-serve` prints."""

_HEAD = (
    *("", "requests/s", "first token s", "ms a token", "requests that run at once", "preemptions"),
    *("first token s, alone", "ms a token, alone", "others' CPU"),
)


def table(summary: dict[str, dict[str, dict[str, float]]], requests: int) -> str:
    """A Markdown table with a row for each engine; with the factor to the first, full attention.

    Args:
        summary: figures of each engine.
        requests: that came at once; an engine that runs all of them might run more.
    """
    dense = next(iter(summary.values()))
    rows = [_row(name, figures, dense, requests) for name, figures in summary.items()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (_HEAD, ["---"] * len(_HEAD), *rows))


def _row(
    name: str, figures: dict[str, dict[str, float]], dense: dict[str, dict[str, float]], requests: int
) -> list[str]:
    def cell(kind: str, figure: str, form: str) -> str:
        value, base = figures[kind][figure], dense[kind][figure]
        factor = f" ({value / base:.2f}x)" if figures is not dense and base else ""
        return f"{value:{form}}{factor}"

    together = figures["together"]
    running = cell("together", "running_before_preemption", ".0f")
    others = max(figures[kind]["others_cpu"] for kind in figures)
    return [
        name,
        cell("together", "requests_a_second", ".3g"),
        cell("together", "first_token_s", ".3g"),
        cell("together", "ms_a_token", ".3g"),
        f"at least {running}" if together["running_before_preemption"] == requests else running,
        f"{together['preemptions']:.0f}",
        cell("alone", "first_token_s", ".3g"),
        cell("alone", "ms_a_token", ".3g"),
        f"{others:.0%}",
    ]
