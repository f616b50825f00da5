"""A chat template is a program from elsewhere: it renders in bounded time and memory, or is refused."""

from collections.abc import Iterator

import pytest
from models.chat_tokenizers import CHATML, NO_TAGS, TAGS
from models.tiny_folder import make_tokenizer

from mdmscale.models.chat import Chat
from mdmscale.system import bounded
from mdmscale.system.errors import UserError

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
LOOP = "{% set ns = namespace(x='a') %}{% for number in range(99999) %}"
DOUBLED = "{% set ns.x = ns.x ~ ns.x %}"


@pytest.fixture(autouse=True, scope="module")
def small_limits() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        bounded._child.cache_clear()
        patch.setattr(bounded, "SECONDS", 1.0)
        patch.setattr(bounded, "NUM_BYTES", 2**28)
        yield
    bounded._child.cache_clear()


def chat_of(template: str) -> Chat:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return Chat.of(tokenizer, MESSAGES)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (f"{LOOP}{LOOP}{{% endfor %}}{{% endfor %}}", "takes more than 1 s"),
        ("{{ 'a' * 10**12 }}", "needs more than 0.25 GiB of memory"),
        ("{{ '%999999999999d' % 1 }}", "needs more than 0.25 GiB of memory"),
        (f"{LOOP}{DOUBLED}{{% endfor %}}", "needs more than 0.25 GiB of memory"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth exceeded"),
        ("{{ " + "(" * 9999 + ")" * 9999 + " }}", "maximum recursion depth exceeded"),
        ("{{ raise_exception('no\\nway') }}", "no"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__'"),
        ("{% if %}", "Expected an expression"),
    ],
)
def test_a_hostile_template_is_refused_in_a_line(template: str, reason: str) -> None:
    with pytest.raises(UserError) as refused:
        chat_of(template).render_prompt()
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"the chat template refuses the messages: {reason}")


@pytest.mark.parametrize("tags", [TAGS, NO_TAGS])
def test_an_honest_template_renders_as_transformers_does(tags: tuple[str, str]) -> None:
    chat = chat_of(CHATML.replace("OPEN", tags[0]).replace("CLOSE", tags[1]))
    render = chat.tokenizer.apply_chat_template
    assert chat.render() == render(MESSAGES, tokenize=False)
    assert chat.render_prompt(1) == render(MESSAGES[:1], tokenize=False, add_generation_prompt=True)
    assert chat.render_open() == render(MESSAGES, tokenize=False, continue_final_message=True)
    spans = chat.marked_spans()
    assert (spans is None) == (tags == NO_TAGS)
    assert spans is None or [chat.render()[start:stop] for start, stop in spans] == ["yo<|im_end|>"]
