"""up, down, secrets: the local stack."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from screentest.subjects import check_id
from screentest_ui import credentials, printing, services, stack
from screentest_ui.home import default_home
from screentest_ui.servers import s3_identities, write_private


def up(
    device: Annotated[str, typer.Option(help="cpu-0 (miniatures, no GPU needed) or gpu-0.")] = "cpu-0",
    lanes: Annotated[str, typer.Option(help="Only these lanes, separated by commas.")] = "",
    stub: Annotated[bool, typer.Option("--stub", help="Also the stub lanes, which draw without a model.")] = False,
    judges: Annotated[
        str, typer.Option(help="Only these judges, separated by commas. Default: those that need no weights.")
    ] = "",
    weights_dir: Annotated[
        Path | None, typer.Option(help="Where hub weights are, one folder per lane id. Default: <home>/models.")
    ] = None,
    panel: Annotated[bool, typer.Option(help="Start the panel too.")] = True,
    metrics: Annotated[bool, typer.Option("--metrics", help="Serve numbers for Prometheus on loopback.")] = False,
) -> None:
    """Start what is missing of the local stack, until it answers."""
    home, place = default_home(), services.installation(os.environ)
    wanted = services.Wanted(
        device=device,
        lanes=services.choose_lanes(place, _named(lanes), with_stub=stub),
        judges=services.choose_judges(place, _named(judges)),
        weights_dir=(weights_dir or home.path / "models").absolute(),
        with_panel=panel,
        with_metrics=metrics,
    )
    result = stack.up(home, place, wanted, os.environ, printing.say)
    printing.say(f"scheduler: {result.grpc_address}")
    if result.panel_url:
        printing.say(f"panel: {result.panel_url}")
    if metrics:
        printing.say(f"metrics: {home.metrics_file}")
    if not result.started:
        printing.say("everything was running already")


def _named(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def down() -> None:
    """Stop the local stack; its state stays."""
    stopped = stack.down(default_home(), printing.say)
    printing.say(f"stopped {stopped} processes" if stopped else "nothing was running")


def certs(
    name: Annotated[
        list[str] | None, typer.Option(help="Also this host name or address of the scheduler; may be repeated.")
    ] = None,
) -> None:
    """Sign a certificate for the API, for clients elsewhere."""
    from screentest_ui import certificates  # the library for it costs every other command a moment

    directory = default_home().secrets.directory
    signed = certificates.sign(directory, tuple(name or ()), datetime.now(UTC))
    files = certificates.Certificates.in_(directory)
    printing.say(f"certificate of {', '.join(signed.names)} until {signed.until:%Y-%m-%d}")
    printing.say(f"SCREENTEST_GRPC_TLS_CERT_FILE={files.server}")
    printing.say(f"SCREENTEST_GRPC_TLS_KEY_FILE={files.server_key}")
    printing.say(f"clients: SCREENTEST_GRPC_CA_FILE={files.ca}")


def secrets(
    also: Annotated[
        list[str] | None, typer.Option(help="A further host whose workers join this stack; may be repeated.")
    ] = None,
    devices: Annotated[str, typer.Option(help="Every device of every host, separated by commas.")] = ",".join(
        credentials.DEVICES
    ),
) -> None:
    """Make the missing secrets of this home, and name their place."""
    from screentest_ui import certificates  # as above

    home, place = default_home(), services.installation(os.environ)
    kept = home.secrets
    lane_ids = services.worker_ids(place)
    named = tuple(check_id(device.strip(), "device") for device in devices.split(","))
    users = credentials.nats_users(services.HOST, lane_ids, named)
    for host in also or ():
        users += credentials.further_host_users(check_id(host, "host"), lane_ids, named)
    # compose.yaml mounts these two; a local stack writes its own.
    write_private(kept.directory / "nats-users.conf", kept.authorization(users))
    write_private(kept.directory / "depot-s3.json", s3_identities(kept.depot_keys(services.BUCKET)))
    kept.grpc_token_file()
    # In a container the scheduler listens beyond loopback.
    files = certificates.ensure(kept.directory, datetime.now(UTC))
    if not home.client_file.exists():  # where compose.yaml publishes it; `screentest up` writes its own
        write_private(home.client_file, _compose_client(kept.grpc_token_file(), files.ca))
    printing.say(
        f"{len(users)} NATS users, 2 depot keys, gRPC token and certificates are in {kept.directory} (mode 0600)"
    )


def _compose_client(token: Path, ca: Path) -> str:
    return (
        f"SCREENTEST_GRPC_ADDRESS=127.0.0.1:50051\nSCREENTEST_GRPC_TOKEN_FILE={token}\nSCREENTEST_GRPC_CA_FILE={ca}\n"
    )
