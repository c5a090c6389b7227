"""A process that tries grammars out and nothing else; started by `grammar.py`, which kills it at will.

A schema, a regular expression or a grammar is a program from a stranger for llguidance's compiler: 60,000
brackets in each other overflow its stack, counts of a thousand million take its memory, and either would
end the whole server. Here it ends this process, which has little memory and a timer on its processor
time. The timer acts from outside of Python, so that no loop in compiled code escapes it.

A line of JSON with kind and source comes in, a line with "grammar" (compiled) or "error" goes out. This
file is run by its path and imports nothing of the package.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

MEMORY = 2 << 30
SECONDS = 2.0
MAX_DEPTH = 16  # schemas, or brackets, in each other
MAX_COUNT = 10_000  # repetitions, those of repetitions multiplied
MAX_CHOICES = 10_000
# What parsing may cost in the server afterwards: about 100 ms at the start and 10 ms a token at the worst.
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 150_000,
    "step_max_items": 50_000,
    "max_items_in_row": 2_000,
    "max_lexer_states": 25_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
# Between the parts of JSON: nothing, a space, or a new line with its indentation. Unbounded white space
# is where small models get lost. A schema may carry settings for the compiler; these win over them.
JSON: Any = {"whitespace_pattern": r"( |\n {0,24})?", "lenient": False, "coerce_one_of": False}


class Refused(Exception):  # noqa: N818 (an answer, not a fault)
    """Why a grammar isn't taken."""


class Bytes:
    """A vocabulary of the 256 bytes and an end: enough to see whether a grammar can begin."""

    eos_token_id, bos_token_id, special_token_ids = 256, None, [256]
    tokens = [*(bytes((b,)) for b in range(256)), b"<end>"]  # noqa: RUF012

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


def compiled(kind: str, source: str) -> str:
    """llguidance's form of a grammar. Refused, or an end of this process, where it has none."""
    if kind == "json":
        return LLMatcher.grammar_from_json_schema({"type": "object"}, overrides=JSON)
    if kind == "choice":
        choices = _json(source)
        good = isinstance(choices, list) and all(isinstance(c, str) and c for c in choices)
        if not good or not 0 < len(choices) <= MAX_CHOICES:
            raise Refused(f"choices are a list of 1 to {MAX_CHOICES} texts that aren't empty")
        return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(c) for c in choices))
    if kind == "json_schema":
        schema = _json(source)
        if not isinstance(schema, dict):
            raise Refused("a schema is a JSON object")
        if _depth(schema) > 2 * MAX_DEPTH:  # a schema within one is two levels of JSON down
            raise Refused(f"more than {MAX_DEPTH} schemas in each other")
        for pattern in _patterns(schema):
            _check_regex(pattern)
        if not _has_an_end(schema):
            raise Refused("its recursion never ends: no finite text can fulfil it")
        return LLMatcher.grammar_from_json_schema(source, overrides=JSON)
    _check_regex(source)
    return LLMatcher.grammar_from_regex(source) if kind == "regex" else LLMatcher.grammar_from_lark(source)


def _json(source: str) -> Any:
    try:
        return json.loads(source)
    except (ValueError, RecursionError) as error:
        raise Refused(f"it is no JSON: {error}") from error


def _depth(value: Any) -> int:
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        one, depth = waiting.pop()
        deepest = max(deepest, depth)
        children = one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        waiting += [(child, depth + 1) for child in children if isinstance(child, dict | list)]
    return deepest


def _patterns(value: Any) -> list[str]:
    """Regular expressions anywhere in a schema."""
    found, waiting = [], [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            found += [one["pattern"]] if isinstance(one.get("pattern"), str) else []
            if isinstance(one.get("patternProperties"), dict):
                found += one["patternProperties"]
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    return found


_SIGNS = re.compile(
    r"\\.|[()]|\{(\d*),?(\d*)\}|\[\^?\]?(?:\\.|[^\]\\])*\]|~\s*(\d+)(?:\.\.(\d+))?", re.DOTALL
)


def _check_regex(source: str) -> None:
    """Refuse brackets too deep and counts too large (of brackets within brackets the product).

    Quoted text in a grammar is read as if it were bare: that can only make the check stricter.
    """
    levels = [1]  # for each open bracket, the largest product of counts within it
    last = 1
    for found in _SIGNS.finditer(source):
        sign = found.group()
        if sign == "(":
            levels.append(1)
            if len(levels) > MAX_DEPTH + 1:
                raise Refused(f"more than {MAX_DEPTH} brackets in each other")
        elif sign == ")":
            last = levels.pop() if len(levels) > 1 else 1
            levels[-1] = max(levels[-1], last)
            continue
        elif numbers := [n for n in found.groups() if n]:
            inner = last if source[found.start() - 1 : found.start()] == ")" else 1
            product = inner * max(int(n[:9]) if len(n) < 9 else MAX_COUNT + 1 for n in numbers)
            if product > MAX_COUNT:
                raise Refused(f"repetitions of more than {MAX_COUNT}")
            levels[-1] = max(levels[-1], product)
        last = 1


def _has_an_end(schema: dict[str, Any]) -> bool:
    """Whether some finite value may fulfil a schema, as far as its $refs say.

    The least fixed point: a reference counts as endless until what it names is known to end.
    """
    ends: dict[str, bool] = {}

    def target(name: str) -> Any:
        at: Any = schema
        for step in name.removeprefix("#").strip("/").split("/") if name not in ("#", "#/") else ():
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(at, list) and step.isdigit() and int(step) < len(at):
                at = at[int(step)]
            elif isinstance(at, dict) and step in at:
                at = at[step]
            else:
                return True  # not here: the compiler has its own words for it
        return at

    def finite(one: Any) -> bool:
        if not isinstance(one, dict) or "const" in one or "enum" in one:
            return True
        name = one.get("$ref")
        if isinstance(name, str) and name.startswith("#") and not ends.setdefault(name, False):
            return False
        for key in ("anyOf", "oneOf"):
            if isinstance(one.get(key), list) and not any(map(finite, one[key])):
                return False
        if isinstance(one.get("allOf"), list) and not all(map(finite, one["allOf"])):
            return False
        kinds = one.get("type", ["object", "array"] if "type" not in one else [])
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if set(kinds) - {"object", "array"}:
            return True
        if "type" not in one and not {"properties", "items", "prefixItems"} & one.keys():
            return True
        return any(_parts_end(one, kind, finite) for kind in kinds)

    changed = True
    while changed:
        done = finite(schema)
        changed = False
        for name, known in list(ends.items()):
            if not known and finite(target(name)):
                ends[name] = changed = True
        changed = changed or (done != finite(schema))
    return finite(schema)


def _parts_end(one: dict[str, Any], kind: str, finite: Any) -> bool:
    """Whether what an object or array must have can be finite."""
    if kind == "object":
        known, needed = one.get("properties"), one.get("required")
        if not isinstance(known, dict) or not isinstance(needed, list):
            return True
        return all(finite(known.get(name, True)) for name in needed if isinstance(name, str))
    number = one.get("minItems", 0)
    if not isinstance(number, int) or number <= 0:
        return True
    first = one.get("prefixItems")
    first = first[:number] if isinstance(first, list) else []
    return all(map(finite, first)) and (number <= len(first) or finite(one.get("items", True)))


def answer(line: str) -> dict[str, str]:
    """The answer to one request."""
    request = json.loads(line)
    try:
        grammar = compiled(request["kind"], request["source"])
        tokenizer = LLTokenizer(TokenizerWrapper(Bytes()), n_vocab=257)
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(**LIMITS))
        mask = b"" if matcher.is_error() else matcher.compute_bitmask()
        if matcher.is_error():
            why = matcher.get_error()
            never = why.startswith("NoExtension")
            raise Refused("no text can fulfil it" if never else why)
        if not int.from_bytes(mask, "little") & ((1 << 256) - 1):
            raise Refused("only the empty text can fulfil it")
    except Refused as error:
        return {"error": " ".join(str(error).split())[:400]}
    except Exception as error:
        return {"error": " ".join(str(error).split())[:400] or type(error).__name__}
    return {"grammar": grammar}


def main() -> None:
    """Serve requests until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # its signal ends the process
        try:
            reply = answer(line)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
