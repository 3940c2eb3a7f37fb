"""The command line: `python -m skerch COMMAND`. Heavy imports happen inside commands."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version
        from platform import python_version

        from h5py.version import hdf5_version

        typer.echo(
            f"skerch {version('skerch')}, torch {version('torch')}, h5py {version('h5py')} "
            f"(HDF5 {hdf5_version}), Python {python_version()}"
        )
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print versions."),
    ] = False,
) -> None:
    """Sketched eigendecompositions of neural-network Hessians."""


def prio_hpars(
    shape: Annotated[str, typer.Option(help="Rows and columns, as in 100,200.")],
    budget: Annotated[int, typer.Option(help="How many numbers may be stored.")],
    sym: Annotated[bool, typer.Option("--sym", help="The matrix is symmetric.")] = False,
) -> None:
    """The largest sketch sizes, outer and inner, that fit a memory budget."""
    from skerch.a_priori import sketch_sizes

    outer, inner = sketch_sizes(_numbers(shape), budget, sym=sym)
    typer.echo(f"outer: {outer}\ninner: {inner}")


def _numbers(shape: str) -> tuple[int, int]:
    """The rows and columns that --shape gives."""
    from skerch.errors import UsageError

    try:
        rows, columns = (int(number) for number in shape.split(","))
    except ValueError:
        raise UsageError(f"--shape {shape} must be two numbers, as in 100,200.") from None
    return rows, columns


def post_bounds(
    apost_n: Annotated[int, typer.Option("--apost_n", help="The number of probes.")],
    apost_err: Annotated[
        float, typer.Option("--apost_err", help="The relative error ε of the squared residual.")
    ],
) -> None:
    """How likely an error estimate from probes is wrong by a factor."""
    from skerch.a_posteriori import probability_bounds

    below, above = probability_bounds(apost_n, apost_err)
    if apost_err < 1:
        typer.echo(f"P(estimate² <= {1 - apost_err:g} true²) <= {below:.3e}")
    typer.echo(f"P(estimate² >= {1 + apost_err:g} true²) <= {above:.3e}")


def create_hdf5_layout(
    hdf5dir: Annotated[Path, typer.Option(help="A new or empty folder.")],
    shape: Annotated[str, typer.Option(help="Rows and columns, as in 7030,7030.")],
    dtype: Annotated[str, typer.Option(help="float16, 32, 64 or complex64, 128.")] = "float32",
    outer: Annotated[int, typer.Option(help="The number of outer measurements.")] = 100,
    inner: Annotated[int, typer.Option(help="The number of inner measurements.")] = 200,
    sym: Annotated[bool, typer.Option("--sym", help="The matrix is symmetric.")] = False,
) -> None:
    """Lay out files for the measurements of skerch 0.x, one a column."""
    from skerch.measurements.legacy.layout import create_hdf5_layout

    for path in create_hdf5_layout(hdf5dir, _numbers(shape), outer, inner, dtype, sym=sym):
        typer.echo(path)


def merge_hdf5(
    in_path: Annotated[
        Path, typer.Option("--in_path", help="A <prefix>_ALL.h5, or a folder of measurements.")
    ],
    out_path: Annotated[Path, typer.Option("--out_path", help="The merged file.")],
    ok_flag: Annotated[
        str | None, typer.Option("--ok_flag", help="What all flags must be (0.x and 1.x).")
    ] = None,
    delete_subfiles: Annotated[
        bool,
        typer.Option("--delete_subfiles", help="Remove what is merged, once that is verified."),
    ] = False,
) -> None:
    """Consolidate measurements, ours or of skerch 0.x or 1.x, into one file."""
    from skerch.measurements.legacy.merge import merge_hdf5

    merge_hdf5(in_path, out_path, ok_flag=ok_flag, delete_subfiles=delete_subfiles)
    typer.echo(out_path)


def main() -> None:
    """Run a command; a user's mistake ends in one sentence and exit status 1 or 2."""
    import skerch

    if skerch.__file__ is None:  # Python has taken a clone's folder here for the package
        typer.echo(
            f"error: the folder skerch in {Path.cwd()} hides the program: type skerch instead of "
            "python -m skerch, or go to another folder.",
            err=True,
        )
        sys.exit(2)
    from skerch.errors import SkerchError
    from skerch.files import cause, print_always, refusals_named
    from skerch.jobs.commands.mount import mount

    print_always()
    mount(app)
    for command in (prio_hpars, post_bounds, create_hdf5_layout, merge_hdf5):
        app.command(command.__name__)(command)
    try:
        with refusals_named():
            app()
    except SkerchError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_status)
    except MemoryError as error:
        said = str(error).rstrip(".") or "no word on how much"
        typer.echo(f"error: memory is short ({said}); ask for less, or go where more is.", err=True)
        sys.exit(1)
    except OSError as error:  # it names no file: the terminal or a pipe refuses the output
        typer.echo(f"error: the output cannot be written: {cause(error)}.", err=True)
        os._exit(1)  # as the interpreter would try once more to write it


if __name__ == "__main__":
    main()
