"""A tokenizer that knows nothing but bytes: token id = byte value, so any text survives, and chat markup on top.

The chat template is ChatML with Hermes-style tools. It is append-only: every message renders to a text that depends on
that message alone (and, for the first one, on the tools), so a longer conversation begins with exactly the text of the
shorter one and its KV can be reused. That is also why each tool result is a user turn of its own: grouping
neighbours into one turn would move the end marker when the next result arrives.
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
IM_START_ID, EOS_ID, PAD_ID = 256, 257, 258
VOCAB_SIZE = 259  # 256 bytes and three specials

CHAT_TEMPLATE = r"""
{%- macro text_of(content) -%}
  {%- if content is string -%}
    {{- content -}}
  {%- elif content is iterable -%}
    {%- for part in content -%}
      {{- part if part is string else part.get('text', '') -}}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- macro tool_section() -%}
  {{- "# Tools\n\nYou may call the functions below; each line between the <tools> tags is one JSON signature.\n" -}}
  {{- "<tools>\n" -}}
  {%- for tool in tools -%}
    {{- tool | tojson -}}{{- "\n" -}}
  {%- endfor -%}
  {{- "</tools>\n\nTo call a function, answer with its name and arguments as JSON between <tool_call> tags:\n" -}}
  {{- '<tool_call>\n{"name": <function name>, "arguments": <arguments object>}\n</tool_call>' -}}
{%- endmacro -%}
{%- macro tool_call(call) -%}
  {%- set function = call.function if call.function is defined else call -%}
  {%- set arguments = function.arguments -%}
  {{- '<tool_call>\n{"name": ' -}}{{- function.name | tojson -}}{{- ', "arguments": ' -}}
  {{- arguments if arguments is string else arguments | tojson -}}
  {{- '}\n</tool_call>' -}}
{%- endmacro -%}
{%- set has_system = messages and messages[0].role in ('system', 'developer') -%}
{%- if tools and not has_system -%}
  {{- '<|im_start|>system\n' -}}{{- tool_section() -}}{{- '<|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
  {%- if message.role in ('system', 'developer') -%}
    {{- '<|im_start|>system\n' -}}{{- text_of(message.content) -}}
    {%- if loop.first and tools -%}
      {{- '\n\n' -}}{{- tool_section() -}}
    {%- endif -%}
  {%- elif message.role == 'tool' -%}
    {{- '<|im_start|>user\n<tool_response>\n' -}}{{- text_of(message.content) -}}{{- '\n</tool_response>' -}}
  {%- else -%}
    {{- '<|im_start|>' -}}{{- message.role -}}{{- '\n' -}}
    {%- set text = text_of(message.content) -%}
    {{- text -}}
    {%- for call in (message.tool_calls or []) -%}
      {%- if text or not loop.first -%}{{- '\n' -}}{%- endif -%}
      {{- tool_call(call) -}}
    {%- endfor -%}
  {%- endif -%}
  {{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\n' -}}
{%- endif -%}
""".strip()


def byte_symbols() -> list[str]:
    """The printable character by which byte-level tokenizers write byte b, for b = 0..255.

    Printable Latin-1 bytes stand for themselves and the others follow from U+0100 on, the alphabet that the
    ``tokenizers`` library's ByteLevel parts use.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in symbols]
    symbols.update({byte: chr(0x100 + i) for i, byte in enumerate(others)})
    assert set(symbols.values()) == set(ByteLevel.alphabet())
    return [symbols[byte] for byte in range(256)]


def byte_tokenizer(max_context_tokens: int) -> PreTrainedTokenizerFast:
    """The tokenizer, ready for ``save_pretrained``. No merges, no normalizer, no bos; eos is ``<|im_end|>``."""
    vocab = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    # Without the regex a text is one long word; with it, it would be split to no purpose as nothing merges.
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    specials = (IM_START, IM_END, END_OF_TEXT)  # in the order of their ids
    inner.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[IM_START],
        model_max_length=max_context_tokens,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
