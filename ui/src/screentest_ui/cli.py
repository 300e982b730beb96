"""The ``screentest`` command: one verb per line, each verb's code in the module of its group."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import typer

from screentest.errors import BadRequest, ScreentestError
from screentest_ui import (
    cli_backup,
    cli_compare,
    cli_depot,
    cli_fleet,
    cli_judge,
    cli_lanes,
    cli_models,
    cli_rehearse,
    cli_restore,
    cli_rubric,
    cli_stack,
    cli_sweeps,
)

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    name="screentest",
    help="One scene, every local video model, on your own GPU.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# A verb returns its exit status; None = 0.
_VERBS: tuple[tuple[str, Callable[..., int | None]], ...] = (
    ("up", cli_stack.up),
    ("down", cli_stack.down),
    ("secrets", cli_stack.secrets),
    ("certs", cli_stack.certs),
    ("submit", cli_sweeps.submit),
    ("watch", cli_sweeps.watch),
    ("status", cli_sweeps.status),
    ("cancel", cli_sweeps.cancel),
    ("retry", cli_sweeps.retry),
    ("pause", cli_judge.pause),
    ("resume", cli_judge.resume),
    ("priority", cli_judge.priority),
    ("judge", cli_judge.judge),
    ("finding", cli_judge.finding),
    ("diff", cli_compare.diff),
    ("replay", cli_compare.replay),
    ("report", cli_sweeps.report),
    ("events", cli_sweeps.events),
    ("preflight", cli_sweeps.preflight),
    ("rehearse", cli_rehearse.rehearse),
    ("gpus", cli_fleet.gpus),
    ("drain", cli_fleet.drain),
    ("undrain", cli_fleet.undrain),
    ("restore", cli_restore.restore),
    ("backup", cli_backup.backup),
    ("restore-backup", cli_backup.restore_backup),
)

_MODELS_VERBS: tuple[tuple[str, Callable[..., int | None]], ...] = (
    ("pull", cli_models.pull),
    ("verify", cli_models.verify),
    ("list", cli_models.list_models),
)

_RUBRIC_VERBS: tuple[tuple[str, Callable[..., int | None]], ...] = (
    ("draft", cli_rubric.draft),
    ("edit", cli_rubric.edit),
    ("check", cli_rubric.check),
    ("approve", cli_rubric.approve),
)


def main() -> None:
    """Exit status: 0 ok, 1 failed, 2 usage or input that cannot be used, 130 interrupted."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    try:
        app(args=arguments, prog_name="screentest")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else OK
    except ScreentestError as error:
        sys.stderr.write(f"error: {error}\n")
        return USAGE if isinstance(error, BadRequest) else FAILED
    except OSError as error:  # a full disk, a folder that is not ours
        sys.stderr.write(f"error: {error.filename or 'a file'}: {error.strerror}; free space or check its owner\n")
        return FAILED
    return OK


def _exiting(verb: Callable[..., int | None]) -> Callable[..., None]:
    @functools.wraps(verb)
    def call(*args: object, **kwargs: object) -> None:
        try:
            status = verb(*args, **kwargs)
        except KeyboardInterrupt:
            status = INTERRUPTED
        raise typer.Exit(status or OK)

    return call


def _add(group: typer.Typer, name: str, verb: Callable[..., int | None]) -> None:
    """With its first sentence in the list of verbs, in as many lines as it takes: what is derived there is cut off."""
    first = " ".join((verb.__doc__ or "").split("\n\n")[0].split()).partition(". ")[0].rstrip(".")
    group.command(name, short_help=f"{first}.")(_exiting(verb))


for _name, _verb in _VERBS:
    _add(app, _name, _verb)

_lanes = typer.Typer(
    help="The catalogue of lanes; `doctor` examines its files.", invoke_without_command=True, no_args_is_help=False
)


@_lanes.callback()
def _list_lanes(context: typer.Context, weights_dir: cli_lanes.WeightsDir = None, json: cli_lanes.Json = False) -> None:
    """List the lanes: licence, size, weights on this machine, smallest card; with a stack, who serves them."""
    if context.invoked_subcommand is None:
        _exiting(cli_lanes.lanes)(weights_dir, json)


_add(_lanes, "doctor", cli_lanes.doctor)
app.add_typer(_lanes, name="lanes")

_models = typer.Typer(help="The published weights of the lanes, on this machine.", no_args_is_help=True)
for _name, _verb in _MODELS_VERBS:
    _add(_models, _name, _verb)
app.add_typer(_models, name="models")

_depot = typer.Typer(help="The bucket that holds clips, archives and reports.", no_args_is_help=True)
_add(_depot, "check", cli_depot.check)
app.add_typer(_depot, name="depot")

_rubric = typer.Typer(help="Draft, check and approve what a prompt asks for.", no_args_is_help=True)
for _name, _verb in _RUBRIC_VERBS:
    _add(_rubric, _name, _verb)
app.add_typer(_rubric, name="rubric")
