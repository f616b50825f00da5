"""What neither LLaDA's nor Dream's code can express: heads of another width, and windows of attention."""

from transformers import PretrainedConfig


def unexpressed_attention(config: PretrainedConfig, code: str) -> list[str]:
    """The fields of attention that `code` lacks and would silently compute otherwise, one line each."""
    problems = []
    width = config.hidden_size // config.num_attention_heads
    if (head_dim := getattr(config, "head_dim", None)) not in (None, width):
        problems.append(
            f"head_dim = {head_dim} is not hidden_size / num_attention_heads = {width}, which {code} needs"
        )
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if kinds is not None and set(kinds) != {"full_attention"}:
        named = ", ".join(sorted(set(kinds)))
        problems.append(f"layer_types = {named}, but {code} has full attention only")
    if kinds is None and window is not None:  # layer_types, where there are any, say which layers use it
        problems.append(f"sliding_window = {window}, but {code} has full attention only")
    return problems
