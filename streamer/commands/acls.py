"""``streamer acls``: the minimal ACLs of a command, as text, as commands or as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import orjson

from streamer.commands.flags import SettingsCommand
from streamer.terminal import echo

if TYPE_CHECKING:
    from streamer.settings import TopicsSettings


class _Role(click.ParamType[str]):
    name = "command"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from streamer.kafka.client.acls import ROLES  # noqa: PLC0415 - completion starts without the Kafka client

        if value not in ROLES:
            self.fail(f"{value!r} is not one of {', '.join(ROLES)}", param, ctx)
        return value


@click.command(cls=SettingsCommand, uses="topics", short_help="Print the minimal ACLs of a command.")
@click.argument("role", type=_Role(), metavar="COMMAND")
@click.option("--principal", help="Print kafka-acls commands that grant the ACLs to this principal, e.g. User:rerank.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for tools that manage ACLs.")
def acls(settings: TopicsSettings, role: str, principal: str | None, as_json: bool) -> None:
    """Print the minimal ACLs for COMMAND: embed, rerank, topics-apply, topics-check, dlq-show (and list),
    dlq-redrive, replay, audit, exposure, explain, top or demo.

    No broker is contacted and nothing is changed. docs/reference/privileges.md lists the ACLs of all commands.
    """  # noqa: D205 - click joins the lines of a paragraph
    from streamer.kafka.client import acls  # noqa: PLC0415

    if as_json:
        echo(orjson.dumps(acls.as_objects(settings, role), option=orjson.OPT_INDENT_2).decode(), lines=True)
    elif principal is not None:
        for line in acls.kafka_acls(settings, role, principal):
            echo(line)
    else:
        for each in acls.as_objects(settings, role):
            names = f"{each['name']}*" if each["pattern"] == "prefixed" else each["name"]
            echo(f"{each['operation']} on the {each['resource']} {names}: {each['why']}")
