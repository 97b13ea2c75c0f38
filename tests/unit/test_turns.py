"""The order and shape of a conversation."""

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_guarded_llm.request import PromptRequest
from mlx_guarded_llm.turns import fold_system, order_results, take_turns


def test_neighbours_of_one_role_become_one_message() -> None:
    call: dict[str, Any] = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f"}}],
    }
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "a"},
        {"role": "user", "content": ""},
        {"role": "user", "content": "b"},
        call,
        {"role": "assistant", "content": "c"},
        {"role": "tool", "content": "d", "tool_call_id": "1"},
        {"role": "tool", "content": "e", "tool_call_id": "2"},
    ]
    turns = take_turns(messages)
    assert turns == [{"role": "user", "content": "a\n\nb"}, *messages[3:]]
    assert messages[0]["content"] == "a"


@pytest.mark.parametrize(
    ("names", "apart", "joined"),
    [
        (("ann", "ann"), [("a\n\nb", "ann")], [("a\n\nb", "ann")]),
        (("ann", "bob"), [("a", "ann"), ("b", "bob")], [("a\n\nb", None)]),
        (("ann", None), [("a", "ann"), ("b", None)], [("a\n\nb", None)]),
    ],
)
def test_neighbours_of_several_names_are_joined_only_where_they_must(
    names: Any, apart: Any, joined: Any
) -> None:
    messages = [
        {"role": "user", "content": text} | ({"name": name} if name else {})
        for text, name in zip("ab", names, strict=True)
    ]
    for found, expected in (
        (take_turns(messages), apart),
        (take_turns(messages, of_any_name=True), joined),
    ):
        assert [(turn["content"], turn.get("name")) for turn in found] == expected


def test_system_messages_go_into_messages_of_the_user() -> None:
    said = [
        {"role": role, "content": content}
        for role, content in (
            ("system", "a"),
            ("system", ""),
            ("user", "b"),
            ("system", "c"),
            ("assistant", "d"),
            ("system", "e"),
            ("user", ""),
            ("system", "f"),
        )
    ]
    told = [{"role": "user", "content": "a\n\nb\n\nc"}, said[4]]
    told += [{"role": "user", "content": "e\n\nf"}]
    assert fold_system(said, 0) == told
    assert fold_system(said, 1) == [said[0], {"role": "user", "content": "b\n\nc"}, *told[1:]]
    assert fold_system(said, 9) == said
    assert said[2]["content"] == "b"


def test_a_system_message_beside_no_message_of_the_user() -> None:
    system, answer = {"role": "system", "content": "a"}, {"role": "assistant", "content": "b"}
    told, own = result("1"), {"role": "user", "content": "a"}
    assert fold_system([system, answer], 0) == [system, answer]
    assert fold_system([answer, system], 0) == [answer, own]
    assert fold_system([told, system, answer], 0) == [told, own, answer]


def calls(*ids: Any) -> dict[str, Any]:
    function = {"name": "f", "arguments": {}}
    made = [{"type": "function", "function": function, "id": identity} for identity in ids]
    return {"role": "assistant", "content": "", "tool_calls": made}


def result(identity: str, text: str = "") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": identity, "content": text or identity}


USER = {"role": "user", "content": "Hi"}


def test_results_stand_in_the_order_of_their_calls() -> None:
    right = [USER, calls("a", "b", "c"), result("a"), result("b"), result("c"), USER]
    for order in permutations(right[2:5]):
        given = [*right[:2], *order, USER]
        assert order_results(given) == right
        assert order_results(given) is not given
        assert list(PromptRequest(given).messages) == list(PromptRequest(right).messages)


def test_each_round_is_ordered_by_itself() -> None:
    # Some clients number the calls of each round anew.
    first, second = [result("0", "x"), result("1", "y")], [result("0", "z"), result("1", "w")]
    right = [USER, calls("0", "1"), *first, calls("0", "1"), *second]
    mixed = [USER, calls("0", "1"), *first[::-1], calls("0", "1"), *second[::-1]]
    assert order_results(mixed) == right


def test_calls_in_several_messages_are_answered_together() -> None:
    right = [calls("a"), calls("b"), result("a"), result("b")]
    assert order_results([calls("a"), calls("b"), result("b"), result("a")]) == right


def test_an_id_that_two_calls_share_belongs_to_them_in_turn() -> None:
    given = [calls("a", "b", "a"), result("b"), result("a", "first"), result("a", "second")]
    assert order_results(given)[1:] == [result("a", "first"), result("b"), result("a", "second")]
    more = [calls("a", "b"), result("b"), result("a", "1"), result("a", "2")]
    assert order_results(more)[1:] == [result("a", "1"), result("a", "2"), result("b")]


def test_results_of_no_known_call_stay_where_they_are() -> None:
    given = [calls("a", "b"), result("b"), result("?"), result("a")]
    assert order_results(given)[1:] == [result("a"), result("?"), result("b")]
    for untouched in ([result("b"), result("a")], [USER, result("a")], [calls(None), result("a")]):
        assert order_results(untouched) == untouched
    late = [calls("a", "b"), result("b"), USER, result("a")]
    assert order_results(late) == late


@pytest.mark.parametrize("identity", [None, 3, ["a"], {"a": 1}])
def test_ids_that_are_no_strings(identity: Any) -> None:
    given = [calls(identity, "b", "a"), result("a"), result("b")]
    assert order_results(given)[1:] == [result("b"), result("a")]


MESSAGE = st.sampled_from([USER, calls(), calls("a", "b"), calls("b"), *map(result, "abc")])


@settings(deadline=None)
@given(st.lists(MESSAGE, max_size=12))
def test_nothing_is_lost_and_nothing_else_moves(messages: list[dict[str, Any]]) -> None:
    ordered = order_results(messages)
    assert [m["role"] for m in ordered] == [m["role"] for m in messages]
    assert sorted(map(repr, ordered)) == sorted(map(repr, messages))
    assert order_results(ordered) == ordered
