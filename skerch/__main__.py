"""The command line: `python -m skerch COMMAND`. Heavy imports happen inside commands."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

app = typer.Typer(
    help="Sketched eigendecompositions of neural-network Hessians.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command("prio_hpars")
def prio_hpars(
    shape: Annotated[str, typer.Option(help="Rows and columns, as in 100,200.")],
    budget: Annotated[int, typer.Option(help="How many numbers may be stored.")],
    sym: Annotated[bool, typer.Option("--sym", help="The matrix is symmetric.")] = False,
) -> None:
    """The largest sketch sizes, outer and inner, that fit a memory budget."""
    from skerch.a_priori import sketch_sizes
    from skerch.errors import SkerchError

    try:
        rows, columns = (int(number) for number in shape.split(","))
    except ValueError:
        raise SkerchError(f"--shape {shape} must be two numbers, as in 100,200.") from None
    outer, inner = sketch_sizes((rows, columns), budget, sym=sym)
    typer.echo(f"outer: {outer}\ninner: {inner}")


@app.command("post_bounds")
def post_bounds(
    apost_n: Annotated[int, typer.Option("--apost_n", help="The number of probes.")],
    apost_err: Annotated[
        float, typer.Option("--apost_err", help="The relative error ε of the squared residual.")
    ],
) -> None:
    """How likely an error estimate from some probes is off by a factor."""
    from skerch.a_posteriori import probability_bounds

    below, above = probability_bounds(apost_n, apost_err)
    if apost_err < 1:
        typer.echo(f"P(estimate² <= {1 - apost_err:g} true²) <= {below:.3e}")
    typer.echo(f"P(estimate² >= {1 + apost_err:g} true²) <= {above:.3e}")


def main() -> None:
    """Run a command; a user's mistake ends in one sentence and exit status 1 or 2."""
    from skerch.errors import SkerchError
    from skerch.jobs.commands import mount

    mount(app)
    try:
        app()
    except SkerchError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
