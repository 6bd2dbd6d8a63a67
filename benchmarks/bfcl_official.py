"""The official checker's verdicts, for `bfcl_parity.py`: runs in an environment of its own that holds bfcl-eval.

    python -m venv .venv-bfcl
    .venv-bfcl/bin/pip install --no-deps bfcl-eval==2026.3.23 tree_sitter==0.21.3 tree-sitter-java==0.21.0 \
        tree-sitter-javascript==0.21.4 tenacity filelock

The table of hosted models, which would pull in every vendor's client, is stubbed; no model of it is used. Reads JSON
lines of `{"item": …, "answer": …}` and writes one of `true`, `false` or `"ExceptionName"` for each.
"""

from __future__ import annotations

import json
import sys
import types
from typing import Any


class _NoModels(dict):  # type: ignore[type-arg]
    """A table in which every model keeps the dots of its functions' names."""

    def __missing__(self, name: str) -> Any:
        return types.SimpleNamespace(underscore_to_dot=False)


def _stub() -> None:
    module = types.ModuleType("bfcl_eval.constants.model_config")
    module.MODEL_CONFIG_MAPPING = _NoModels()  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module


def main() -> None:
    """Answers every line of stdin."""
    _stub()
    from bfcl_eval.constants.enums import Language, ReturnFormat  # type: ignore[import-not-found]
    from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker  # type: ignore[import-not-found]
    from bfcl_eval.model_handler.utils import default_decode_ast_prompting  # type: ignore[import-not-found]
    from bfcl_eval.utils import is_empty_output, is_function_calling_format_output  # type: ignore[import-not-found]

    def verdict(item: dict[str, Any], answer: Any) -> bool:
        category = item["id"].rsplit("_", 1)[0]
        is_java, is_javascript = category == "simple_java", category == "simple_javascript"
        is_relevance = category.endswith("relevance")
        form = ReturnFormat.JAVA if is_java else ReturnFormat.JAVASCRIPT if is_javascript else ReturnFormat.PYTHON
        language = Language.JAVA if is_java else Language.JAVASCRIPT if is_javascript else Language.PYTHON
        try:
            calls = default_decode_ast_prompting(answer, form, False) if isinstance(answer, str) else answer
        except Exception:
            return "irrelevance" in category
        if is_relevance:
            return is_empty_output(calls) == ("irrelevance" in category)
        if not is_function_calling_format_output(calls):
            return False
        return ast_checker(item["function"], calls, item["ground_truth"], language, category, "none")["valid"]

    for line in sys.stdin:
        row = json.loads(line)
        try:
            found: Any = bool(verdict(row["item"], row["answer"]))
        except Exception as exc:
            found = type(exc).__name__
        sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
