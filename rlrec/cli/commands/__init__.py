"""This module lists the commands. The module of a command is imported when the command is needed."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from inspect import cleandoc
from typing import cast

import click

# name: (its package, its one-line help without the full stop), in the order of the help. A module and the command in it
# have the name of the command, with _ for -.
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("commands.setup", "Create the store, or bring it up to date"),
    "status": ("commands.judging", "Show what a store holds, what its policies do, what is waiting"),
    "arm": ("commands.setup", "Add, list, retire and restore arms"),
    "reward": ("commands.setup", "Define and list rewards"),
    "policy": ("commands.policies", "Create policies, look into them, freeze and promote versions"),
    "route": ("commands.experiments", "Give a policy a name for callers; switch, roll back"),
    "recommend": ("commands.requests", "Draw a slate and log it with its exact propensities"),
    "feedback": ("commands.requests", "Record what the user did after a decision"),
    "pipe": ("commands.requests", "Answer requests and feedback in one long-running process"),
    "serve": ("doors", "Answer the lines of `pipe` to many clients over HTTP"),
    "screen": ("doors", "Show the store in a browser"),
    "settle": ("commands.requests", "Learn from slots of `settled` rewards whose window is over"),
    "session": ("commands.requests", "List sessions, show one as a timeline, end a visit"),
    "user": ("commands.requests", "Merge the keys of one person, show a user"),
    "decision": ("commands.requests", "Show how one decision's probabilities arose"),
    "position": ("commands.judging", "Estimate how likely each position is examined"),
    "train-pg": ("commands.policies", "Train a policy gradient on logged sessions, and judge it"),
    "evaluate": ("commands.judging", "Estimate from the log what policies would have earned"),
    "sweep": ("commands.judging", "Compare kinds and parameters on a log: which learns best"),
    "effects": ("commands.judging", "Show the effect of showing an arm, now and in the long run"),
    "experiment": ("commands.experiments", "Split users or sessions between policies, and compare them"),
    "outcomes": ("commands.judging", "Show visits, returns and rewards per user, and compare groups"),
    "import-log": ("commands.upkeep", "Import logs of other systems, to evaluate and to learn from"),
    "export-log": ("commands.upkeep", "Write the log, one decision a line"),
    "log": ("commands.upkeep", "Exclude bots, staff or outages from all that reads the log"),
    "simulate": ("commands.setup", "Serve a simulated audience whose best arm or policy is known"),
    "exposure": ("commands.judging", "Show each arm's share of the log, and how even the shares are"),
    "exploration": ("commands.judging", "Show what exploration costs, and what it earns"),
    "report": ("commands.judging", "Write an HTML page about the store, with figures, to share"),
    "doctor": ("commands.upkeep", "Audit the store: beliefs, propensities, draws, references, time"),
    "db": ("commands.upkeep", "Forget a user, prune old decisions, back up and copy the store"),
    "config": ("commands.setup", "Show the defaults of options, and where they come from"),
    "demo": ("commands.setup", "Show the whole loop on a real log, in under a minute"),
    "help": ("commands.setup", "Show a page of the manual, or the help of a command"),
}


@cache
def load_command(name: str) -> click.Command:
    """Import a command by its name, and return it. Its text in COMMANDS becomes the first line of its help."""
    room, summary = COMMANDS[name]
    word = name.replace("-", "_")
    command = cast(click.Command, getattr(import_module(f"rlrec.cli.{room}.{word}"), word))
    command.help = f"{summary}.\n\n{cleandoc(command.help or '')}".rstrip()
    return command
