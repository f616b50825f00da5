"""Text that can be written as UTF-8."""

from mdmscale.system.errors import UserError


def check_utf8(text: str, where: str) -> str:
    """Return `text` if a tokenizer can encode it.

    Raises:
        UserError: where the text has half a surrogate pair, which JSON escapes can write but UTF-8 cannot.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: character {error.start + 1} is half a surrogate pair, so this is not Unicode text"
        ) from None
    return text
