"""The files that steps meet through: tables, manifests, step folders."""

from esa.artifact.files import read_json, replacing, sha256_of, write_text
from esa.artifact.manifest import read_manifest
from esa.artifact.rankings import parse_indices, read_ranking
from esa.artifact.steps import Journal, Step, find_table, marking_failures, table_path, write_json
from esa.artifact.tables import STDIO, Table, finite, make_table, read_table, to_json, write_stdout, write_table

__all__ = [
    "STDIO", "Journal", "Step", "Table", "find_table", "finite", "make_table", "marking_failures", "parse_indices",
    "read_json", "read_manifest", "read_ranking", "read_table", "replacing", "sha256_of", "table_path", "to_json", "write_json",
    "write_stdout", "write_table", "write_text",
]  # fmt: skip
