"""The parity table: family -> name of a configuration -> Case."""

import table_llama
import table_others

TABLE = table_llama.TABLE | table_others.TABLE
