"""The parity table: family -> name of a configuration -> Case."""

import table_llama

try:
    import table_others
except ModuleNotFoundError:
    OTHERS = {}
else:
    OTHERS = table_others.TABLE

TABLE = table_llama.TABLE | OTHERS
