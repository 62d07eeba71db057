"""The graph of stages, as names: the built-in ones and those of the project's config.  Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vmoat.config.errors import config_error
from vmoat.config.stagetable import EVERY
from vmoat.config.values import closest, show

BUILTIN: dict[str, str] = {
    "image": "builds the guest image",
    "vm": "starts the VM",
    "local": "mounts the folders of mounts.local",
    "apt": "installs PROVISION_APT",
    "script": "runs PROVISION_SCRIPT",
    "seed": "copies the seed files",
    "stack": "runs CMD_UP",
    "health": "waits for the stack's health",
    "tunnel": "forwards ports",
    "test": "runs CMD_TEST",
}
"""Built-in stages and what they do."""

RESERVED = (*BUILTIN, "up")
ON_DEMAND = ("tunnel", "test")
"""Stages that run when asked for: nothing of `up` may come after them."""

DEFAULT_AFTER = ("script", "seed")
NAME_MAX = 40
STAGES_MAX = 100
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class UserStage:
    """A ``[stages.NAME]`` of the config.  ``after`` is () where the file says nothing;
    ``where`` is the file and line of its first key."""

    name: str
    run: str
    inputs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    every: str = "change"
    where: str = ""


def validate_stages(stages: Sequence[UserStage]) -> None:
    """Raise CONFIG for a name that is bad, taken or twice there, for an unknown ``after`` or
    ``every``, an empty ``run``, and for a cycle, which the error prints."""
    names = [stage.name for stage in stages]
    if len(names) > STAGES_MAX:
        raise config_error(
            stages[STAGES_MAX].where,
            f"there are {len(names)} stages, and at most {STAGES_MAX} can be",
            "join some in one `run`",
        )
    for stage in stages:
        _check_name(stage)
        if names.count(stage.name) > 1:
            raise config_error(stage.where, f"two stages are called {stage.name}", "rename one")
        if not stage.run.strip():
            raise config_error(
                stage.where,
                f"stages.{stage.name} has no command",
                f'write run = "…" under [stages.{stage.name}]',
            )
        if stage.every not in EVERY:
            raise config_error(
                stage.where,
                f"stages.{stage.name}.every must be one of "
                + ", ".join(f'"{word}"' for word in EVERY)
                + f", not {show(stage.every)}",
                'write every = "change", or leave it out',
            )
        _check_after(stage, names)
    stage_order(stages)


def _check_name(stage: UserStage) -> None:
    name = stage.name
    if name in RESERVED:
        does = BUILTIN.get(name, "the whole way up")
        raise config_error(
            stage.where,
            f"stages.{name} takes the name of the built-in stage `{name}` ({does})",
            f"give it a name of its own, for example [stages.my-{name}]",
        )
    if not _NAME.fullmatch(name) or len(name) > NAME_MAX:
        raise config_error(
            stage.where,
            f"stages.{show(name)} is no name for a stage",
            f"use a-z, 0-9, - and _, beginning with a letter or digit, at most {NAME_MAX}",
        )


def _check_after(stage: UserStage, names: Sequence[str]) -> None:
    known = [*BUILTIN, *names]
    for other in stage.after:
        if other in ON_DEMAND:
            raise config_error(
                stage.where,
                f"stages.{stage.name}.after names `{other}`, which runs only when asked for",
                'name a stage of `vmoat up`, for example after = ["health"]',
            )
        if other not in known:
            meant = closest(other, known)
            raise config_error(
                stage.where,
                f"stages.{stage.name}.after names {show(other)}, and there is no such stage",
                f'did you mean "{meant}"?' if meant else f"known: {', '.join(known)}",
            )


def edges(stages: Sequence[UserStage]) -> dict[str, tuple[str, ...]]:
    """Stage -> the stages that come directly before it, for built-ins and user stages.

    A user's stage stands before the stack unless it comes after it by its own ``after``.  One that
    comes after the stack stands before `health` and `test` unless it comes after these.
    """
    own = {stage.name: _own_edges(stage) for stage in stages}
    late = _reaching(own, {"stack", "health"})
    after_health = _reaching(own, {"health"})
    early = tuple(name for name in own if name not in late)
    middle = tuple(name for name in own if name in late and name not in after_health)
    last = tuple(name for name in own if name in after_health)
    return {
        "image": (),
        "vm": ("image",),
        "local": ("vm",),
        "apt": ("local",),
        "script": ("apt",),
        "seed": ("local",),
        **own,
        "stack": ("script", "seed", *early),
        "health": ("stack", *middle),
        "tunnel": ("health",),
        "test": ("health", *last),
    }


def _own_edges(stage: UserStage) -> tuple[str, ...]:
    if not stage.after:
        return DEFAULT_AFTER
    # Every stage runs inside the VM, in the worktree as it is seen there.
    return stage.after if {*stage.after} - {"image", "vm"} else (*stage.after, "local")


def _reaching(own: Mapping[str, Iterable[str]], targets: set[str]) -> set[str]:
    """The user stages from which one of ``targets`` is reached along ``after``."""
    found: set[str] = set()
    grown = True
    while grown:
        more = {name for name, after in own.items() if (targets | found) & set(after)}
        grown = not more <= found
        found |= more
    return found


def stage_order(stages: Sequence[UserStage]) -> tuple[str, ...]:
    """All stages in an order in which they can run, stable; raises CONFIG printing a cycle."""
    graph = edges(stages)
    order: list[str] = []
    for name in graph:
        _visit(name, graph, order, stages)
    return tuple(order)


def _visit(
    start: str, graph: Mapping[str, tuple[str, ...]], order: list[str], stages: Sequence[UserStage]
) -> None:
    """Depth first with a stack of its own: a config may chain a thousand stages."""
    if start in order:
        return
    done = set(order)
    path = [start]
    pending = [iter(graph[start])]
    while path:
        following = next((n for n in pending[-1] if n not in done), None)
        if following is None:
            order.append(path.pop())
            done.add(order[-1])
            pending.pop()
        elif following in path:
            raise _cycle(path[path.index(following) :], stages)
        else:
            path.append(following)
            pending.append(iter(graph[following]))


def _cycle(ring: Sequence[str], stages: Sequence[UserStage]) -> Exception:
    place = {stage.name: stage.where for stage in stages}
    # Read "x → y" as "x waits for y"; begin with a stage that the user wrote.
    first = next((index for index, name in enumerate(ring) if name in place), 0)
    turned = [*ring[first:], *ring[:first]]
    ends = [f"stages.{name} ({place[name]})" for name in turned if place.get(name)]
    return config_error(
        place.get(turned[0], ""),
        f"the stages wait for each other: {' → '.join([*turned, turned[0]])}",
        "remove one `after` of " + " or ".join(ends or turned),
    )
