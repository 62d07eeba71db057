"""The graph of stages, and the errors of graphs that can't be."""

from __future__ import annotations

import pytest

from vmoat.config.stages import UserStage, edges, stage_order, validate_stages
from vmoat.errors import Code, VmoatError


def stage(name: str, *after: str) -> UserStage:
    return UserStage(name, "true", after=after, where=f"vmoat.toml:{len(name)}")


def test_built_in_order() -> None:
    assert stage_order(()) == (
        "image", "vm", "local", "apt", "script", "seed", "stack", "health", "tunnel", "test",
    )  # fmt: skip


def test_the_stack_waits_for_every_stage_before_it() -> None:
    graph = edges([stage("gen"), stage("early", "vm")])
    assert graph["gen"] == ("script", "seed")
    assert graph["early"] == ("vm", "local"), "in the worktree as the VM sees it"
    assert graph["stack"] == ("script", "seed", "gen", "early")


def test_a_stage_after_the_stack_is_before_health_unless_it_asks_otherwise() -> None:
    graph = edges([stage("migrate", "stack"), stage("more", "migrate"), stage("load", "health")])
    assert graph["stack"] == ("script", "seed")
    assert graph["health"] == ("stack", "migrate", "more")
    assert graph["test"] == ("health", "load")
    order = stage_order(
        [stage("load", "health"), stage("more", "migrate"), stage("migrate", "stack")]
    )
    assert order.index("stack") < order.index("migrate") < order.index("more")
    assert order.index("more") < order.index("health") < order.index("load")


def test_a_stage_after_the_image_alone_still_has_a_vm() -> None:
    assert edges([stage("a", "image")])["a"] == ("image", "local"), "which comes after the VM"


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([stage("a", "b"), stage("b", "a")], ["a → b → a", "stages.a (vmoat.toml:1)"]),
        ([stage("self", "self")], ["self → self"]),
        (
            [stage("x", "stack", "y"), stage("yy", "x"), stage("y", "yy")],
            ["x → y → yy → x"],
        ),
        ([stage("a", "gone")], ["stages.a.after names 'gone'", "known"]),
        ([stage("a", "test")], ["stages.a.after names `test`", "only when asked for"]),
        ([stage("tunnel")], ["stages.tunnel takes the name of the built-in stage `tunnel`"]),
        ([stage("a"), stage("a")], ["two stages are called a"]),
        ([stage("-a")], ["is no name"]),
        ([stage(f"s{n}") for n in range(101)], ["at most 100"]),
    ],
)
def test_bad_graphs(stages: list[UserStage], words: list[str]) -> None:
    with pytest.raises(VmoatError) as caught:
        validate_stages(stages)
    assert caught.value.code == Code.CONFIG
    assert caught.value.message.startswith("vmoat.toml:")
    for word in words:
        assert word in str(caught.value)


def test_a_long_chain_is_no_recursion() -> None:
    chain = [stage("s0")] + [stage(f"s{n}", f"s{n - 1}") for n in range(1, 100)]
    validate_stages(chain)
    assert stage_order(list(reversed(chain)))[5:8] != ()
