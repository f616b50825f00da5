"""Check the messages of a conversation, in the form that OpenAI's interface and Hugging Face datasets use.

What templates differ over is made alike: content is a string, the arguments of tool calls are an object, and
keys without a value are left out.
"""

from collections.abc import Sequence
from typing import Any

from mdmscale.system.errors import UserError
from mdmscale.system.files import parse_json
from mdmscale.system.unicode import check_strings

Message = dict[str, Any]


def check_messages(messages: Any, name: str = "messages") -> list[Message]:
    """The messages, with their content as strings.

    Raises:
        UserError: naming the message, where it has no role or no content that is text.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise UserError(f"{name!r} is not a list of messages")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise UserError(f"each of {name!r} must be an object with 'role' and 'content'")
    return [_checked(message, number, name) for number, message in enumerate(messages, start=1)]


def check_tools(tools: Any) -> list[Any] | None:
    """The list of tools, in OpenAI's format; None where there are none. Datasets often hold it as JSON text.

    Raises:
        UserError: where they are not a list of objects.
    """
    if isinstance(tools, str) and tools.strip():
        try:
            tools = parse_json(tools)
        except ValueError as error:
            raise UserError(f"'tools' is a text, but not one of JSON: {error}") from None
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UserError('\'tools\' is not a list of objects such as {"type": "function", ...}')
    check_strings(tools, "'tools'")
    return tools


def answer_texts(message: Message) -> list[str]:
    """The texts that an assistant's message says: its reasoning, its content, the names that it calls."""
    texts = [message.get(key) for key in ("reasoning_content", "reasoning", "thinking", "content")]
    functions = [_function(call) for call in message.get("tool_calls") or []]
    return [text for text in (*texts, *(each.get("name") for each in functions)) if isinstance(text, str)]


def _checked(message: Message, number: int, name: str) -> Message:
    where = f"message {number} of {name!r} ({message['role']})"
    check_strings(message, where)
    kept = {key: value for key, value in message.items() if value is not None}
    if calls := message.get("tool_calls"):
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise UserError(f"{where}: 'tool_calls' is not a list of objects")
        kept["tool_calls"] = [_with_parsed_arguments(call) for call in calls]
    content = message.get("content")
    if content is None and not calls:
        raise UserError(f"{where}: has no content; leave the message out")
    return {**kept, "content": _text_of(content, where)}


def _text_of(content: Any, where: str) -> str:
    """Content as a string: as it is, or the text of its parts."""
    match content:
        case None:
            return ""
        case str():
            return content
        case dict() if content.get("type") == "text":
            return _text_of([content], where)
        case list():
            return "".join(_part_text(part, where) for part in content)
    raise UserError(
        f"{where}: content = {_short(content)} is of type {type(content).__name__}; give a string, or a list "
        'of parts such as {"type": "text", "text": "..."}'
    )


def _part_text(part: Any, where: str) -> str:
    match part:
        case str():
            return part
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "text"}:
            raise UserError(f"{where}: a part of type 'text' has no 'text'")
        case {"type": str(kind)}:
            raise UserError(
                f"{where}: has a part of type {kind!r}, but this model reads and writes text only"
            )
    raise UserError(f'{where}: {_short(part)} is not a part such as {{"type": "text", "text": "..."}}')


def _with_parsed_arguments(call: Message) -> Message:
    """A tool call whose arguments are an object. OpenAI's are JSON text, which templates quote again."""
    function = _function(call)
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        parsed = parse_json(arguments)
    except ValueError:
        return call  # a text of the user's own
    if not isinstance(parsed, dict):
        return call
    parsed_function = {**function, "arguments": parsed}
    return {**call, "function": parsed_function} if "function" in call else parsed_function


def _function(call: Message) -> Message:
    function = call.get("function", call)
    return function if isinstance(function, dict) else {}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
