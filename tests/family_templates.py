"""Chat templates in the manner of the families, written for these tests, and a tokenizer for them."""

# ruff: noqa: E501 (templates have lines of their own)

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer as Inner
from tokenizers import decoders, models, pre_tokenizers

LLAMA = """\
{{- bos_token }}
{%- set head = messages[0].content | trim if messages[0].role == 'system' else '' %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}{% if tools %}{{ 'Environment: ipython\\n' }}{% endif %}{{ head + '<|eot_id|>' }}
{%- for m in messages if m.role != 'system' %}
    {%- if m.tool_calls %}
        {%- if m.tool_calls | length != 1 %}{{ raise_exception('one call at once, please') }}{% endif %}
        {%- set f = m.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + f.name + '", "parameters": ' + (f.arguments | tojson) + '}<|eot_id|>' }}
    {%- elif m.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + m.content + '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}
        {%- if loop.first and tools %}{% for t in tools %}{{ t | tojson(indent=4) + '\\n\\n' }}{% endfor %}{% endif %}
        {{- m.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""
QWEN = """\
{%- if tools or messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' }}{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}
    {%- if tools %}{{ '\\n\\nTools:' }}{% for t in tools %}{{ '\\n' + (t | tojson) }}{% endfor %}{% endif %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(asked=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.asked = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
    {%- if m.role == 'user' %}{{ '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' }}
    {%- elif m.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if m.reasoning_content and loop.index0 > ns.asked %}{{ '<think>\\n' + m.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}
        {{- m.content or '' }}
        {%- for c in m.tool_calls or [] %}
            {{- '\\n' if m.content or not loop.first }}
            {{- '<tool_call>\\n{"name": "' + c.function.name + '", "arguments": ' + (c.function.arguments | tojson) + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif m.role == 'tool' %}
        {%- if loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
"""
MISTRAL = """\
{{- bos_token }}
{%- set users = messages | selectattr('role', 'equalto', 'user') | list %}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {%- if tools and m == users[-1] %}{{ '[AVAILABLE_TOOLS][' }}{% for t in tools %}{{ t | tojson }}{{ ', ' if not loop.last }}{% endfor %}{{ '][/AVAILABLE_TOOLS]' }}{% endif %}
        {{- '[INST]' }}{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}{{ m.content + '[/INST]' }}
    {%- elif m.tool_calls %}
        {{- '[TOOL_CALLS][' }}
        {%- for c in m.tool_calls %}
            {%- if c.id | length != 9 %}{{ raise_exception('ids have nine signs') }}{% endif %}
            {{- (c.function | tojson)[:-1] + ', "id": "' + c.id + '"}' }}{{ ', ' if not loop.last }}
        {%- endfor %}{{ ']' + eos_token }}
    {%- elif m.role == 'tool' %}
        {%- if m.tool_call_id | length != 9 %}{{ raise_exception('ids have nine signs') }}{% endif %}
        {{- '[TOOL_RESULTS]' + m.content + '[/TOOL_RESULTS]' }}
    {%- elif m.role == 'assistant' %}{{ m.content + eos_token }}
    {%- endif %}
{%- endfor %}
"""
MISTRAL_11 = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ '[SYSTEM_PROMPT]' + messages[0].content + '[/SYSTEM_PROMPT]' }}{% endif %}
{%- if tools %}{{ '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}
{%- for m in messages %}
    {%- if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}
    {%- elif m.tool_calls %}
        {%- for c in m.tool_calls %}{{ '[TOOL_CALLS]' + c.function.name + '[CALL_ID]' + c.id + '[ARGS]' + (c.function.arguments | tojson) }}{% endfor %}{{ eos_token }}
    {%- elif m.role == 'tool' %}{{ '[TOOL_RESULTS]' + m.tool_call_id + '[TOOL_CONTENT]' + m.content + '[/TOOL_RESULTS]' }}
    {%- elif m.role == 'assistant' %}{{ m.content + eos_token }}
    {%- endif %}
{%- endfor %}
"""
DEEPSEEK = """\
{%- set ns = namespace(tool=false) %}
{{- bos_token }}{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}
{%- if tools %}{{ '\\n\\nTools:' }}{% for t in tools %}{{ '\\n' + (t | tojson) }}{% endfor %}{% endif %}
{%- for m in messages %}
    {%- if m.role == 'user' %}{% set ns.tool = false %}{{ '<｜User｜>' + m.content }}
    {%- elif m.role == 'assistant' and not m.content %}
        {{- '<｜Assistant｜>' if not ns.tool }}{{ '<｜tool▁calls▁begin｜>' }}{% set ns.tool = false %}
        {%- for c in m.tool_calls %}
            {{- '\\n' if not loop.first }}
            {{- '<｜tool▁call▁begin｜>' + c.type + '<｜tool▁sep｜>' + c.function.name + '\\n```json\\n' + c.function.arguments + '\\n```<｜tool▁call▁end｜>' }}
        {%- endfor %}{{ '<｜tool▁calls▁end｜>' + eos_token }}
    {%- elif m.role == 'assistant' %}{{ ('' if ns.tool else '<｜Assistant｜>') + m.content + eos_token }}{% set ns.tool = false %}
    {%- elif m.role == 'tool' %}
        {{- '<｜tool▁outputs▁begin｜>' if not ns.tool else '\\n' }}{% set ns.tool = true %}
        {{- '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}
        {{- '<｜tool▁outputs▁end｜>' if loop.last or loop.nextitem.role != 'tool' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt and not ns.tool %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}
"""
DEEPSEEK_31 = """\
{%- set ns = namespace(tool=false) %}
{{- bos_token }}{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}
{%- if tools %}{{ '\\n\\nTools:' }}{% for t in tools %}{{ '\\n' + (t | tojson) }}{% endfor %}{% endif %}
{%- for m in messages %}
    {%- if m.role == 'user' %}{% set ns.tool = false %}{{ '<｜User｜>' + m.content }}
    {%- elif m.role == 'assistant' %}
        {{- '<｜Assistant｜></think>' if not ns.tool }}{% set ns.tool = false %}{{ m.content }}
        {%- if m.tool_calls %}
            {{- '<｜tool▁calls▁begin｜>' }}
            {%- for c in m.tool_calls %}{{ '<｜tool▁call▁begin｜>' + c.function.name + '<｜tool▁sep｜>' + (c.function.arguments | tojson) + '<｜tool▁call▁end｜>' }}{% endfor %}
            {{- '<｜tool▁calls▁end｜>' }}
        {%- endif %}{{ eos_token }}
    {%- elif m.role == 'tool' %}{% set ns.tool = true %}{{ '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt and not ns.tool %}{{ '<｜Assistant｜>' }}{{ '<think>' if thinking else '</think>' }}{% endif %}
"""
LLAMA_TOKENS = [
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
    "<|eot_id|>",
]
QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKUP = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
MISTRAL_TOKENS = [
    "<s>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[CALL_ID]",
    "[ARGS]",
    "[TOOL_CONTENT]",
    "</s>",
]
DEEPSEEK_TOKENS = [
    "<｜begin▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁outputs▁begin｜>",
    "<｜tool▁outputs▁end｜>",
    "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>",
    "<｜end▁of▁sentence｜>",
]
# name -> (template, special tokens: the first begins a text, the last ends a turn; added tokens)
FAMILIES = {
    "llama": (LLAMA, LLAMA_TOKENS, []),
    "qwen": (QWEN, QWEN_TOKENS, MARKUP),
    "hermes": (QWEN, QWEN_TOKENS, []),  # the same marks, but in ordinary text
    "mistral": (MISTRAL, MISTRAL_TOKENS, []),
    "mistral 11": (MISTRAL_11, MISTRAL_TOKENS, []),
    "deepseek": (DEEPSEEK, DEEPSEEK_TOKENS, MARKUP[:2]),
    "deepseek 3.1": (DEEPSEEK_31, DEEPSEEK_TOKENS, MARKUP[:2]),
}


def family_folder(path: Path, template: str, special: list[str], added: list[str]) -> Path:
    """A model folder with a byte-level tokenizer that has a family's control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "o"), ("to", "o"), ("too", "l"), ("a", "n"), ("i", "n"), (">", "Ċ"), (".", "<")]
    vocabulary = {sign: i for i, sign in enumerate([*alphabet, *(a + b for a, b in merges)])}
    inner = Inner(models.BPE(vocabulary, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(special)
    inner.add_tokens(added)
    path.mkdir(parents=True, exist_ok=True)
    (path / "tokenizer.json").write_text(inner.to_str())
    spoken = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": special[0], "eos_token": special[-1]}
    (path / "tokenizer_config.json").write_text(json.dumps(spoken))
    (path / "chat_template.jinja").write_text(template)
    return path
