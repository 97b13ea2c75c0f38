"""Templating and encoding of prompts."""

import json
import pickle
from itertools import chain
from typing import Any

import pytest

from mlx_guarded_llm.engine.prompt.prompt import Prompt, encode_prompt, fit_max_tokens
from mlx_guarded_llm.engine.prompt.tool_format import OURS, native_format
from mlx_guarded_llm.errors import ContextOverflow, InvalidRequest, ModelInvalid, NoChatTemplate
from mlx_guarded_llm.request import PromptRequest
from mlx_guarded_llm.testing.chat_templates import chatml
from tests.engine._families import family
from tests.engine._tokenizers import (
    CONTEXT,
    THINK,
    TOOL,
    Answer,
    base,
    byte_level,
    caller,
    plain,
    sentencepiece,
    thinker,
)

USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be kind."}
ASKED: list[dict[str, Any]] = [
    USER,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_0123456789",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_0123456789", "content": "sunny"},
]


def encode(tokenizer: Any, prompt: Any, window: int = CONTEXT, **options: Any) -> Prompt:
    return encode_prompt(tokenizer, PromptRequest(prompt, **options), context_window=window)


def text(tokenizer: Any, prompt: Any, **options: Any) -> str:
    return str(tokenizer.decode(encode(tokenizer, prompt, **options).token_ids))


# What the model gets to read


def test_a_string_is_a_user_message() -> None:
    expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert text(plain(), "Hi") == text(plain(), [USER]) == expected


def test_it_is_what_mlx_lm_makes() -> None:
    messages = [SYSTEM, USER]
    ours = encode(thinker(), messages, thinking=False)
    assert list(ours.token_ids) == thinker().apply_chat_template(
        messages, add_generation_prompt=True, enable_thinking=False
    )


def test_raw_text_and_base_models() -> None:
    for prompt in (encode(plain(), "Once upon", raw=True), encode(base(), "Once upon")):
        assert plain().decode(prompt.token_ids) == "Once upon"
        assert prompt.raw
        assert prompt.initial_state == "normal"
        assert prompt.split() == [list(prompt.token_ids)]


def test_a_leading_bos_token_is_not_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithBos:
        has_chat_template = False
        bos_token = "<s>"

        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return [1] * add_special_tokens + [2] * len(text)

    assert encode(WithBos(), "a").token_ids == (1, 2)
    assert encode(WithBos(), "<s>a").token_ids == (2,) * 4


def test_tokens_behind_a_text_to_continue_are_left_out() -> None:
    def ids(before: list[int], behind: list[int], text: str) -> tuple[int, ...]:
        class Adding:
            has_chat_template = False
            bos_token = None

            def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
                inner = [2] * len(text)
                return [*before, *inner, *behind] if add_special_tokens else inner

        return encode(Adding(), text).token_ids

    assert ids([1], [3], "ab") == (1, 2, 2)
    assert ids([], [3, 3], "ab") == (2, 2)
    assert ids([1, 1], [], "ab") == (1, 1, 2, 2)


def test_messages_need_a_template() -> None:
    with pytest.raises(NoChatTemplate, match=r"as one string"):
        encode(base(), [USER])


def test_an_empty_prompt_is_refused() -> None:
    tokenizer = byte_level("{{ messages[0].content }}")
    with pytest.raises(InvalidRequest, match="no tokens"):
        encode(tokenizer, [{"role": "user", "content": ""}])


def test_developer_becomes_system_unless_the_template_knows_it() -> None:
    developer = {"role": "developer", "content": "Be kind."}
    assert text(plain(), [developer, USER]) == text(plain(), [SYSTEM, USER])
    knowing = byte_level("{# developer #}" + chatml())
    assert "<|im_start|>developer\n" in text(knowing, [developer, USER])


@pytest.mark.parametrize(
    "refusal",
    [
        "{{ raise_exception('no developer') }}",
        "{# as it has no developer #}{% set m = {'role': m.role, 'content': ''} %}",
    ],
)
def test_a_template_that_names_the_developer_only_to_refuse_or_ignore_it(refusal: str) -> None:
    turn = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    picky = byte_level(
        "{% for m in messages %}{% if m.role not in ('system', 'user', 'assistant') %}"
        + refusal
        + "{% endif %}"
        + turn
        + "{% endfor %}"
    )
    developer = {"role": "developer", "content": "Be kind."}
    assert text(picky, [developer, USER]) == text(picky, [SYSTEM, USER])
    assert text(picky, [SYSTEM, developer, USER]) == text(picky, [SYSTEM, SYSTEM, USER])


def test_thinking_reaches_the_template() -> None:
    assert text(thinker(), "Hi").endswith("assistant\n")
    assert text(thinker(), "Hi", thinking=True).endswith("assistant\n")
    assert text(thinker(), "Hi", thinking=False).endswith("<think>\n\n</think>\n\n")
    assert text(plain(), "Hi", thinking=True) == text(plain(), "Hi")


def test_template_kwargs_reach_the_template() -> None:
    tokenizer = byte_level("{{ date }}" + chatml())
    assert text(tokenizer, "Hi", template_kwargs={"date": "today"}).startswith("today<")


def test_the_last_message_can_be_continued() -> None:
    messages = [USER, {"role": "assistant", "content": "Good mor"}]
    options: dict[str, Any] = {"template_kwargs": {"continue_final_message": True}}
    prompt = encode(plain(), messages, **options)
    assert plain().decode(prompt.token_ids).endswith("<|im_start|>assistant\nGood mor")
    assert prompt.continues_text
    assert not prompt.raw
    started = [USER, {"role": "assistant", "content": "<think>So"}]
    assert encode(thinker(), started, **options).initial_state == "reasoning"


def test_a_continued_sentencepiece_answer_keeps_its_space() -> None:
    tokens = sentencepiece().encode("the", add_special_tokens=False)
    going_on = Prompt((1,), (), continues_text=True)
    assert Answer(sentencepiece(), tokens, prompt=going_on).text == " the"
    assert Answer(sentencepiece(), tokens, prompt=Prompt((1,), ())).text == "the"


# What the template would leave out


def test_a_text_that_is_left_out_is_refused_by_its_place() -> None:
    said = {"role": "assistant", "content": "Be kind"}
    for name in ("drops-answers", "last-message-only"):
        with pytest.raises(InvalidRequest, match=r"leaves out.*messages\[1\].*'Be kind'"):
            encode(family(name).tokenizer, [{"role": "user", "content": ""}, said, USER])
    with pytest.raises(InvalidRequest, match="text of the prompt") as caught:
        encode(family("cuts-long-texts").tokenizer, "x" * 60)
    assert caught.value.hint


def test_short_texts_are_not_found_in_others() -> None:
    said = {"role": "assistant", "content": "s"}
    with pytest.raises(InvalidRequest, match=r"messages\[1\]"):
        encode(family("drops-answers").tokenizer, [USER, said, USER])


@pytest.mark.parametrize("content", ["", " \n"])
def test_nothing_can_be_left_out_of_nothing(content: str) -> None:
    said = {"role": "assistant", "content": content}
    assert encode(family("drops-answers").tokenizer, [USER, said, USER])


@pytest.mark.parametrize("name", ["drops-system", "gemma-1", "last-message-only"])
def test_a_system_message_that_the_template_does_not_take_is_told_by_the_user(name: str) -> None:
    tokenizer = family(name).tokenizer
    assert "Be kind.\n\nHi" in text(tokenizer, [SYSTEM, USER])
    assert "Be kind.\n\nHi" in text(tokenizer, [{**SYSTEM, "role": "developer"}, USER])
    shown = text(tokenizer, [SYSTEM, USER], tools=[TOOL])
    assert shown.index("Be kind.") < shown.index(json.dumps(TOOL)) < shown.index("Hi")
    # One that an answer follows is nobody's question.
    with pytest.raises(InvalidRequest):
        encode(tokenizer, [SYSTEM, {"role": "assistant", "content": "Hi"}, USER])


@pytest.mark.parametrize("name", ["vicuna", "command-r", "llama-2", "gemma-3"])
def test_a_later_system_message_is_told_by_the_user_where_one_only_is_taken(name: str) -> None:
    tokenizer = family(name).tokenizer
    later = {**SYSTEM, "content": "Be brief."}
    talk = [SYSTEM, USER, {"role": "assistant", "content": "Yes?"}]
    shown = text(tokenizer, [*talk, later, {"role": "user", "content": "So"}])
    beginning = text(tokenizer, [SYSTEM, USER])  # the first one stays where it belongs
    assert shown.startswith(beginning[: beginning.index("Hi")])
    assert "Be brief.\n\nSo" in shown[shown.index("Yes?") :]


def test_what_is_said_beside_a_call_is_not_left_out() -> None:
    spoken = [USER, {**ASKED[1], "content": "Let me look."}, ASKED[2]]
    for name in ("llama-3.1-tools", "mistral-3", "deepseek-v3"):
        assert "Let me look." in text(family(name).tokenizer, spoken, tools=[TOOL])
    # Where it can be, in the model's own format of calls.
    prompt = encode(family("llama-3.1-tools").tokenizer, spoken, tools=[TOOL])
    assert prompt.tool_format is not None and prompt.tool_format.native


def test_tools_that_the_template_does_not_really_show_are_described() -> None:
    tokenizer = byte_level(
        "{# <tool_call> tool_call.name #}{% if tools %}There are tools.{% endif %}" + chatml(),
        added=("<tool_call>", "</tool_call>"),
    )
    prompt = encode(tokenizer, [USER], tools=[TOOL])
    assert prompt.tool_format == OURS
    assert json.dumps(TOOL) in tokenizer.decode(prompt.token_ids)


TOOL_MARKERS = ("<tool_call>", "</tool_call>")
_KNOWS_CALLS = "{# <tool_call> tool_call.name #}"


def test_tools_without_a_description_are_not_mistaken_for_words_of_the_question() -> None:
    tokenizer = byte_level(
        _KNOWS_CALLS
        + "{% if tools and messages[0].role != 'system' %}{{ tools | tojson }}{% endif %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        added=TOOL_MARKERS,
    )
    asked = [SYSTEM, {"role": "user", "content": "The weather?"}]
    assert json.dumps(TOOL) in text(tokenizer, asked, tools=[TOOL])


@pytest.mark.parametrize("arguments", [{}, {"days": 3}, {"city": "", "days": [1, True]}])
@pytest.mark.parametrize(
    "call",
    ["", "{{ c.function.name }}{{ c.function.arguments if c.function.arguments is string }}"],
)
def test_calls_without_a_text_in_them_are_not_left_out(call: str, arguments: Any) -> None:
    tokenizer = byte_level(
        _KNOWS_CALLS + "{{ tools | tojson }}{% for m in messages %}{{ m.content }}"
        "{% for c in m.tool_calls or [] %}" + call + "{% endfor %}{% endfor %}",
        added=TOOL_MARKERS,
    )
    function = {"name": "weather", "arguments": arguments}
    asked = [USER, {"role": "assistant", "tool_calls": [{"id": "1", "function": function}]}]
    shown = text(tokenizer, [*asked, {**ASKED[2], "tool_call_id": "1"}], tools=[TOOL])
    if call and not arguments:
        assert "Hiweather" in shown
    else:
        assert json.dumps(arguments) in shown


DOCUMENTS = [
    {"title": "On whales", "text": "A whale is no fish."},
    {"title": "More", "content": "So they say."},
]


def test_documents_are_shown_or_refused() -> None:
    knowing = byte_level(
        "{% for d in documents %}{{ d.text or d.content }}\n{% endfor %}" + chatml(),
    )
    given = {"documents": DOCUMENTS}
    shown = text(knowing, "Hi", template_kwargs=given)
    assert shown.startswith("A whale is no fish.\nSo they say.\n<|im_start|>")
    with pytest.raises(InvalidRequest, match=r"template_kwargs\.documents\[0\].*'A whale"):
        encode(plain(), "Hi", template_kwargs=given)
    assert encode(plain(), "Hi", template_kwargs={"documents": [{"pages": 3}], "other": "x"})
    assert encode(plain(), "Hi", template_kwargs={"documents": None})


@pytest.mark.parametrize(
    "written",
    [
        "{{ m.content | e }}",
        "{{ (m.content | tojson(ensure_ascii=True)).replace('<', '\\\\u003c')"
        ".replace('>', '\\\\u003e').replace('&', '\\\\u0026').replace(\"'\", '\\\\u0027') }}",
        "{{ m.content | indent(4) }}",
        "{{ [m.content] }}",
        "{{ m.content | wordwrap(20) }}",
    ],
)
@pytest.mark.parametrize("content", ['it\'s "quoted" & <b>é 你</b>', "lines\n\nand\r\nlines \t \\"])
def test_a_text_that_is_written_another_way_is_no_loss(written: str, content: str) -> None:
    tokenizer = byte_level("{% for m in messages %}" + written + "{% endfor %}")
    assert encode(tokenizer, content)


def test_neighbours_of_one_role_are_joined_where_the_template_wants_turns() -> None:
    both = [USER, {"role": "user", "content": "there"}]
    assert "Hi\n\nthere" in text(family("gemma-1").tokenizer, both)
    assert "Hi<|im_end|>" in text(plain(), both)


def test_a_switch_that_the_template_takes_out_is_no_loss() -> None:
    tokenizer = family("smollm-3").tokenizer
    for content in ("/no_think", "Be kind. /no_think", "/no_thinkBe kind."):
        shown = text(tokenizer, [{**SYSTEM, "content": content}, USER])
        assert "no_think" not in shown
        assert shown.endswith("</think>\n")


def test_results_come_in_the_order_of_their_calls() -> None:
    call = ASKED[1]["tool_calls"][0]
    asked = {**ASKED[1], "tool_calls": [{**call, "id": "a"}, {**call, "id": "b"}]}
    results = [{"role": "tool", "tool_call_id": i, "content": f"of {i}"} for i in "ab"]
    right = text(plain(), [USER, asked, *results])
    assert right.index("of a") < right.index("of b")
    assert text(plain(), [USER, asked, *reversed(results)]) == right


# What is refused


@pytest.mark.parametrize("continued", [False, True])
def test_the_templates_own_refusal_is_passed_on(continued: bool) -> None:
    words = "Conversation roles must alternate"
    tokenizer = byte_level(
        "{% for message in messages %}{{ message.content }}"
        "{{ raise_exception('" + words + "') }}{% endfor %}"
    )
    messages = [USER, {"role": "assistant", "content": "a"}]
    with pytest.raises(InvalidRequest, match=words):
        encode(tokenizer, messages, template_kwargs={"continue_final_message": continued})


def test_a_template_that_fails() -> None:
    with pytest.raises(InvalidRequest, match="ZeroDivisionError"):
        encode(byte_level("{{ 1 / 0 }}"), "Hi")


def test_a_template_that_is_broken() -> None:
    with pytest.raises(ModelInvalid, match="chat template is broken"):
        encode(byte_level("{% if %}"), "Hi")


def test_the_prompt_must_leave_room_for_an_answer() -> None:
    length = len(encode(plain(), "Hi"))
    assert len(encode(plain(), "Hi", window=length + 1)) == length
    with pytest.raises(ContextOverflow, match=rf"{length} tokens.*window of {length}") as caught:
        encode(plain(), "Hi", window=length)
    assert (caught.value.prompt_tokens, caught.value.context_window) == (length, length)


def test_max_tokens_fit_the_window() -> None:
    assert fit_max_tokens(90, 5, 100) == 5
    assert fit_max_tokens(90, 50, 100) == 10


# Tools


def test_tools_and_calls_reach_the_template() -> None:
    shown = text(caller("json_tools"), ASKED, tools=[TOOL])
    assert '"name": "weather"' in shown
    template = chatml(tools=True)
    tokenizer = byte_level(template, added=("<tool_call>", "</tool_call>"))
    assert '"arguments": {"city": "Rome"}}\n</tool_call>' in text(tokenizer, ASKED, tools=[TOOL])


def test_tool_choice_none_hides_the_tools() -> None:
    tokenizer = caller("json_tools")
    hidden = encode(tokenizer, "Hi", tools=[TOOL], tool_choice="none")
    assert hidden.token_ids == encode(tokenizer, "Hi").token_ids
    assert hidden.tools == ()
    assert encode(tokenizer, "Hi", tools=[TOOL], tool_choice="required").tools == (TOOL,)


def mute() -> Any:
    """mlx-lm can read its calls, but its template shows no tools."""
    return byte_level(
        "{# <tool_call> tool_call.name #}" + chatml(), added=("<tool_call>", "</tool_call>")
    )


@pytest.mark.parametrize("tokenizer", [plain, mute])
def test_tools_are_described_where_the_template_does_not_show_them(tokenizer: Any) -> None:
    prompt = encode(tokenizer(), [SYSTEM, USER], tools=[TOOL])
    shown = tokenizer().decode(prompt.token_ids)
    assert shown.startswith("<|im_start|>system\nBe kind.\n\n# Tools\n")
    assert json.dumps(TOOL) in shown
    assert (prompt.tools, prompt.tool_format) == ((TOOL,), OURS)
    assert text(tokenizer(), [USER], tools=[TOOL]).startswith("<|im_start|>system\n# Tools")
    assert "# Tools" not in text(tokenizer(), [USER], tools=[TOOL], tool_choice="none")


def test_tools_are_described_to_the_user_where_there_is_no_system_message() -> None:
    strict = byte_level(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    shown = text(strict, [USER], tools=[TOOL])
    assert shown.startswith("user: # Tools")
    assert shown.endswith("\n\nHi\n")
    assert text(strict, [SYSTEM, USER], tools=[TOOL]).startswith("user: Be kind.\n\n# Tools")
    with pytest.raises(InvalidRequest, match="no system"):
        encode(strict, [SYSTEM], tools=[TOOL])


@pytest.mark.parametrize("tools", [[], [TOOL]])
def test_calls_are_text_where_the_template_does_not_know_them(tools: Any) -> None:
    second = {"role": "tool", "tool_call_id": "x", "content": "windy"}
    shown = text(plain(), [*ASKED, second], tools=tools)
    assert (
        "<|im_start|>assistant\n<tool_call>\n"
        '{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nsunny\n</tool_response>\n"
        "<tool_response>\nwindy\n</tool_response><|im_end|>\n"
    ) in shown


def test_what_is_said_before_a_call_stays() -> None:
    asked = [USER, {**ASKED[1], "content": "Let me look."}, ASKED[2]]
    assert "assistant\nLet me look.\n<tool_call>\n{" in text(plain(), asked)


def test_tools_need_a_template() -> None:
    with pytest.raises(InvalidRequest, match="no chat template") as caught:
        encode(base(), "Hi", tools=[TOOL])
    assert caught.value.hint


@pytest.mark.parametrize("parser", ["qwen3_coder", "pythonic", "mistral"])
def test_a_call_in_a_format_that_is_no_json_is_forced_in_ours(parser: str) -> None:
    offered = encode(caller(parser), "Hi", tools=[TOOL])
    assert offered.tool_format == native_format(caller(parser))
    assert not offered.calls_are_forced
    forced = encode(caller(parser), "Hi", tools=[TOOL], tool_choice="required")
    assert forced.tool_format == OURS
    assert forced.calls_are_forced
    native = encode(caller("json_tools"), "Hi", tools=[TOOL], tool_choice="required")
    assert native.tool_format == native_format(caller("json_tools"))


def test_a_named_function_is_the_only_one_and_called_once() -> None:
    other = {"type": "function", "function": {"name": "other"}}
    choice = {"type": "function", "function": {"name": "weather"}}
    prompt = encode(plain(), "Hi", tools=[TOOL, other], tool_choice=choice)
    assert prompt.tools == (TOOL,)
    assert not prompt.several_calls
    assert encode(plain(), "Hi", tools=[TOOL, other], tool_choice="required").several_calls
    one = encode(plain(), "Hi", tools=[TOOL], parallel_tool_calls=False)
    assert not one.several_calls


def test_mistral_gets_ids_it_accepts() -> None:
    template = (
        "{# [TOOL_CALLS] #}{{ tools }}{% for m in messages %}{{ m.content }} {{ m.tool_call_id }} "
        "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{{ c.id }} {% endfor %}"
        "{% endfor %}"
    )
    words = text(byte_level(template, added=("[TOOL_CALLS]",)), ASKED, tools=[TOOL]).split()
    first, second = words[-3].rpartition("}")[2], words[-1]
    assert first == second
    assert len(first) == 9
    assert first.isalnum()


# Where the answer begins and where the prefix cache may be cut


@pytest.mark.parametrize("content", ["Hi", "What is <think>?", "<think>", "</think>"])
def test_the_initial_state_is_the_templates(content: str) -> None:
    assert encode(thinker(False), content).initial_state == "normal"
    assert encode(thinker(False), content, thinking=False).initial_state == "normal"
    assert encode(thinker(True), content).initial_state == "reasoning"
    assert encode(plain(), content).initial_state == "normal"


@pytest.mark.parametrize("begin", ["", "{% if add_generation_prompt %}A:{% endif %}"])
def test_the_initial_state_is_not_that_of_a_message(begin: str) -> None:
    inst = "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}" + begin
    tokenizer = byte_level(inst, added=THINK)
    for content in ("What does <think> mean?", "<think>", "</think>"):
        prompt = encode(tokenizer, content)
        assert prompt.initial_state == "normal"
        assert prompt.may_think


def test_the_initial_state_without_a_recognisable_turn() -> None:
    always = byte_level("{{ messages[0].content }}\nA: <think>", added=THINK)
    assert encode(always, "Hi").initial_state == "reasoning"
    fickle = byte_level(
        "{% if add_generation_prompt %}{{ messages[0].content }}<think>"
        "{% else %}{{ raise_exception('no') }}{% endif %}",
        added=THINK,
    )
    assert encode(fickle, "Hi").initial_state == "reasoning"


def test_the_model_may_open_its_thinking() -> None:
    assert encode(thinker(), "Hi").may_think
    assert encode(thinker(), "What is </think>?").may_think
    assert not encode(thinker(), "Hi", thinking=False).may_think
    assert not encode(thinker(True), "Hi").may_think
    assert not encode(plain(), "Hi").may_think
    closed = encode(thinker(), "Hi", template_kwargs={"enable_thinking": False})
    assert not closed.may_think


def parts(tokenizer: Any, prompt: Prompt) -> list[tuple[str, str]]:
    return [
        (segment.kind, tokenizer.decode(tokens))
        for segment, tokens in zip(prompt.segments, prompt.split(), strict=True)
    ]


def test_segments() -> None:
    tokenizer = thinker(True)
    assert parts(tokenizer, encode(tokenizer, [SYSTEM, USER])) == [
        ("system", "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n"),
        ("user", "Hi<|im_end|>\n<|im_start|>assistant\n"),
        ("assistant", "<think>\n"),
    ]
    assert [kind for kind, _ in parts(tokenizer, encode(tokenizer, [USER]))] == [
        "user",
        "assistant",
    ]
    assert parts(plain(), encode(plain(), [USER])) == [
        ("user", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant"),
        ("assistant", "\n"),
    ]


def test_the_system_segment_is_shared_and_holds_the_tools() -> None:
    tokenizer = caller("json_tools")
    shared = set()
    for question in ("a", "b", "<think>"):
        prompt = encode(tokenizer, [SYSTEM, {**USER, "content": question}], tools=[TOOL])
        assert prompt.segments[0].kind == "system"
        shared.add(tuple(prompt.split()[0]))
    assert len(shared) == 1
    assert "weather" in tokenizer.decode(shared.pop())


@pytest.mark.parametrize("messages", [[USER], [SYSTEM, USER], [SYSTEM], [SYSTEM, *ASKED]])
@pytest.mark.parametrize("tokenizer", [plain, thinker, lambda: thinker(True)])
def test_segments_cover_the_prompt(messages: Any, tokenizer: Any) -> None:
    prompt = encode(tokenizer(), messages)
    assert tuple(chain(*prompt.split())) == prompt.token_ids
    assert all(prompt.split())
    assert pickle.loads(pickle.dumps(prompt)) == prompt


def test_the_request_is_not_changed_by_encoding() -> None:
    request = PromptRequest(ASKED, tools=[TOOL])
    before = pickle.dumps(request)
    for parser in ("json_tools", "mistral"):
        encode_prompt(caller(parser), request, context_window=CONTEXT)
    assert pickle.dumps(request) == before
